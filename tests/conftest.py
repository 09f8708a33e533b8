"""A small project, with a teacher trained for seconds, that several tests share."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "2")
# Threads that wait by spinning take the cores from any other process.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import json
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

ROOT = Path(__file__).parents[1]
DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
        ],
    ),
]

SETTINGS: dict[str, Any] = {
    "data": {
        "source": "source",
        "train": {"annotations": "train.json", "images": "images"},
        "val": {"annotations": "val.json", "images": "images"},
    },
    "views": {"scales": [[256, 192], [200, 150]], "flips": ["none", "horizontal"]},
    "teacher": {
        "config": str(ROOT / "configs/paa_r18_quarter.py"),
        "training": {"epochs": 6, "batch_size": 8, "lr": 0.003, "warmup_steps": 5, "workers": 0},
    },
    # A teacher of six epochs says 0.02 of everything, and there shall be priors without a box.
    "labels": {"min_score": 0.05},
    "teacher_pass": {"batch_size": 4, "shard_rows": 8, "workers": 0},
    "training": {"epochs": 2, "batch_size": 8, "lr": 0.003, "warmup_steps": 0, "workers": 0},
    "students": {
        "paa": {"config": str(ROOT / "configs/paa_r18_quarter.py"), "method": "own"},
        "lad": {"config": str(ROOT / "configs/paa_r18_quarter.py"), "method": "lad"},
    },
    "evaluation": {"scale": [256, 192], "batch_size": 8, "workers": 0},
}


SAMPLED: dict[str, Any] = {
    "sampled": {
        "count": 3,
        "seed": 1,
        "scales": [[320, 240], [400, 300]],
        "crop": {"relative": [0.5, 0.8]},
    }
}


@dataclass(frozen=True)
class Project:
    """A folder with `params.yaml` and results in `out`."""

    folder: Path

    @property
    def paths(self):
        from pipeline.project.paths import Paths

        return Paths(self.folder / "out")

    @property
    def params(self):
        from stages.params import load_params

        return load_params(self.folder / "params.yaml")

    def change(self, **sections: Any) -> "Project":
        """Override settings, section by section."""
        file = self.folder / "params.yaml"
        settings = yaml.safe_load(file.read_text())
        for name, section in sections.items():
            settings[name] = settings.get(name, {}) | section
        file.write_text(yaml.safe_dump(settings))
        return self

    def replace(self, **sections: Any) -> "Project":
        """Set whole sections."""
        file = self.folder / "params.yaml"
        file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | sections))
        return self

    def check_data(self) -> dict[str, Any]:
        """The stage `data`."""
        from pipeline.ingest.prepare import prepare_data

        return prepare_data(self.params.data, self.paths)

    def make_teacher(self) -> dict[str, Any]:
        """The stage `teacher`."""
        from pipeline.teacher.make import make_teacher

        return make_teacher(self.params.teacher, self.params.views, self.paths)

    def fill_store(self, replace: bool = False) -> dict[str, Any]:
        """The stage `labels`."""
        from pipeline.teacher_pass.run import fill_store

        return fill_store(
            self.params.labels, self.params.teacher_pass, self.params.views, self.paths, replace
        )

    def train(self, name: str) -> dict[str, Any]:
        """The stage `student`, `online` or `colearn`, whichever has this name."""
        from pipeline.colearning.train import train_colearn
        from pipeline.online.train import train_online_student
        from pipeline.students.train import train_student

        params = self.params
        for section, stage in (
            (params.students, train_student),
            (params.online, train_online_student),
            (params.colearn, train_colearn),
        ):
            if name in section:
                return stage(name, section[name], params.training, params.views, self.paths)
        raise KeyError(name)

    def copy(self, folder: Path) -> "Project":
        """The same project with its results, free to be changed."""
        shutil.copytree(self.folder, folder, dirs_exist_ok=True)
        return Project(folder)


def write_source(folder: Path, images: int = 24) -> None:
    """A COCO data set of digit scenes with several sizes, crowds and images without objects."""
    from pipeline.ingest.digits import write_digits
    from pipeline.ingest.settings import Digits

    write_digits(
        folder,
        Digits(train_images=images, val_images=8, sizes=[(256, 192), (192, 256), (224, 160)]),
    )
    file = folder / "train.json"
    content = json.loads(file.read_text())
    for annotation in content["annotations"]:
        # The first object of every fourth image becomes a crowd; image 5 loses its objects.
        first = next(a for a in content["annotations"] if a["image_id"] == annotation["image_id"])
        if annotation is first and annotation["image_id"] % 4 == 0:
            annotation["iscrowd"] = 1
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] != 5]
    file.write_text(json.dumps(content))


@pytest.fixture(scope="session")
def checked(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project with data alone; tests that change it work on a copy."""
    folder = tmp_path_factory.mktemp("checked")
    (folder / "params.yaml").write_text(yaml.safe_dump(SETTINGS))
    write_source(folder / "source")
    project = Project(folder)
    project.change(data={"source": str(folder / "source")})
    project.check_data()
    return project


@pytest.fixture(scope="session")
def labelled(checked: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project with data, teacher and labels; tests that change it work on a copy."""
    project = checked.copy(tmp_path_factory.mktemp("project"))
    project.make_teacher()
    project.fill_store()
    return project


@pytest.fixture(scope="session")
def sampled(labelled: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The same with labels of sampled and cropped views."""
    project = labelled.copy(tmp_path_factory.mktemp("sampled")).replace(views=SAMPLED)
    project.fill_store(replace=True)
    return project


def sklearn_mixture(costs):
    """The mixture that mmdet's PAAHead has scikit-learn fit to the costs of an object, (N,)."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    mixture = GaussianMixture(
        2,
        weights_init=[0.5, 0.5],
        means_init=[[costs.min()], [costs.max()]],
        precisions_init=[[[1.0]], [[1.0]]],
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return mixture.fit(costs[:, None])


def with_hook(monkeypatch: pytest.MonkeyPatch, hook: type) -> None:
    """Have trainings call a hook of mmengine's, too."""
    from mmengine.registry import HOOKS

    import pipeline.training.run

    HOOKS.register_module(module=hook, force=True)
    runner = pipeline.training.run.Runner
    monkeypatch.setattr(
        pipeline.training.run,
        "Runner",
        lambda **kw: runner(
            **(kw | {"custom_hooks": [*kw["custom_hooks"], dict(type=hook.__name__)]})
        ),
    )
