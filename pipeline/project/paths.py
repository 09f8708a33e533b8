"""Where each stage leaves its results, relative to the project's folder."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Paths:
    """The files and folders under the output folder `root`."""

    root: Path = Path("out")

    @property
    def data(self) -> Path:
        """The checked data set, a folder a split."""
        return self.root / "data"

    def split(self, name: str) -> Path:
        """The checked split `train` or `val` (see `pipeline.data.dataset`)."""
        return self.data / name

    @property
    def decoded_images(self) -> Path:
        """What decoding has shown of image files (see `pipeline.ingest.decoded_images`)."""
        return self.root / "decoded_images.jsonl"

    @property
    def teacher(self) -> Path:
        """The teacher's model folder (see `pipeline.detector.model_folder`)."""
        return self.root / "teacher"

    @property
    def labels(self) -> Path:
        """The label store."""
        return self.root / "labels.zarr"

    @property
    def labels_report(self) -> Path:
        """What the teacher pass did and cost."""
        return self.root / "labels.json"

    @property
    def verification(self) -> Path:
        """What `lad verify` found."""
        return self.root / "verify.json"

    @property
    def compare(self) -> Path:
        """The comparison table and its plots."""
        return self.root / "compare"

    @property
    def students(self) -> Path:
        """The model folders of all students and co-learning networks."""
        return self.root / "students"

    def model(self, name: str) -> Path:
        """The model folder of a student, of a network NAME.NETWORK of a co-learning, or teacher."""
        return self.teacher if name == "teacher" else self.students / name

    def run(self, name: str) -> Path:
        """The folder in which an unfinished training keeps what it needs to continue."""
        return self.root / "runs" / name

    def metrics(self, name: str) -> Path:
        """The COCO metrics of a model."""
        return self.root / "metrics" / f"{name}.json"


def made_by(name: str) -> str:
    """The command that makes the model `name` (see `Paths.model`)."""
    if name == "teacher":
        return "lad teacher"
    pair, dot, _ = name.partition(".")
    return f"lad colearn {pair}" if dot else f"lad student {name}` or `lad online {name}"
