"""A teacher pass over some views, to see what they cost in time and on disk before the whole one.

It takes what is there: the checked data set or the user's, the trained teacher, the user's
checkpoint, or a config with random weights.
"""

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from mmengine.device import get_device
from torch.utils.data import DataLoader
from tqdm import tqdm

from pipeline.data.coco import SET_DATA, AnnotatedImage, load_images, read_coco
from pipeline.data.dataset import CheckedSplit, load_split
from pipeline.detector.build import (
    build_detector,
    load_model_config,
    preprocessing,
    without_downloads,
)
from pipeline.detector.checkpoint import load_weights, read_weights
from pipeline.ingest.digits import write_digits
from pipeline.ingest.settings import BUILT_IN_DATA, Data, SplitFiles
from pipeline.loading.collate import view_loader
from pipeline.loading.dataset import view_dataset
from pipeline.loading.transforms import ALL_OBJECTS
from pipeline.project.errors import UserError
from pipeline.project.paths import Paths
from pipeline.store.schema import Shard, plan_store
from pipeline.store.writer import StoreWriter
from pipeline.teacher.settings import TeacherSettings
from pipeline.teacher_pass.background import Background
from pipeline.teacher_pass.label import batches_of, load_teacher
from pipeline.teacher_pass.settings import Labels, TeacherPass
from pipeline.teacher_pass.shard_labeller import AHEAD, ShardLabeller
from pipeline.teacher_pass.teacher import Numerics, Teacher
from pipeline.views.plan import Shape, ViewPlan
from pipeline.views.priors import PaddedViews


@contextmanager
def find_data(settings: Data, paths: Paths) -> Iterator[CheckedSplit]:
    """The checked training split, or where `lad data` has not run, that of the settings as it is.

    Raises:
        UserError: there is no annotation file.
    """
    if paths.split("train").is_dir():
        yield load_split(paths, "train")
        return
    with tempfile.TemporaryDirectory() as folder:
        source, files = Path(settings.source), settings.train
        if settings.source == BUILT_IN_DATA:
            source, files = Path(folder), SplitFiles(annotations="train.json", images="images")
            write_digits(source, settings.digits, ["train"])
        file = source / files.annotations
        categories = read_coco(file, SET_DATA)["categories"]
        classes = tuple(str(one.get("name")) for one in categories)
        yield CheckedSplit(classes, file, source / files.images, "", "")


def read_images(train: CheckedSplit) -> tuple[AnnotatedImage, ...]:
    """The training images, of a file that may be unchecked.

    Raises:
        UserError: what it says of an image or object is not COCO's.
    """
    file = train.annotations
    images = load_images(file)
    if not images:
        raise UserError(f"{file} has no images; {SET_DATA}")
    return images


@dataclass(frozen=True, eq=False)
class SampleTeacher:
    """The teacher that there is.

    Attributes:
        teacher: on its device.
        divisor: its padded sides are multiples of it.
        trained: false for random weights.
        name: what it is, for the report.
    """

    teacher: Teacher
    divisor: int
    trained: bool
    name: str


def find_teacher(
    settings: TeacherSettings,
    labels: Labels,
    paths: Paths,
    train: CheckedSplit,
    config: str | None,
) -> SampleTeacher:
    """The teacher of the project, else the checkpoint of the settings, else random weights.

    Args:
        settings: of the teacher.
        labels: how it would compute.
        paths: where the teacher may be.
        train: its classes are the teacher's.
        config: an mmdet config to take with random weights whatever else there is.

    Raises:
        UserError: the teacher, checkpoint or config is broken.
    """
    numerics = Numerics.of(labels)
    if config is None and paths.teacher.is_dir():
        teacher, model = load_teacher(paths, train, numerics)
        return SampleTeacher(teacher, _divisor(model), True, f"the teacher in {paths.teacher}")
    model = without_downloads(load_model_config(config or settings.config, len(train.classes)))
    detector = build_detector(model)
    file = None if config or settings.checkpoint is None else Path(settings.checkpoint)
    if file is not None and file.is_file():
        load_weights(detector, read_weights(file, settings.trust_checkpoint), file)
        name = f"the checkpoint {file}"
    else:
        name = f"random weights of {config or settings.config}"
        name += f" ({file} is missing)" if file else ""
        file = None
    teacher = Teacher(detector.to(get_device()), numerics)
    return SampleTeacher(teacher, _divisor(model), file is not None, name)


def _divisor(model: Any) -> int:
    divisor: int = preprocessing(model)["pad_size_divisor"]
    return divisor


@dataclass(frozen=True)
class BatchCost:
    """What a batch of views of one bucket has cost, or a few where the bucket's are small.

    Attributes:
        padded: (height, width) in pixels.
        views: how many.
        seconds: from the end of the ones before to their own, which overlaps with the next.
        sizes: bytes of their rows on disk by array.
    """

    padded: Shape
    views: int
    seconds: float
    sizes: dict[str, int]


def sample_pass(
    teacher: SampleTeacher,
    train: CheckedSplit,
    images: Sequence[AnnotatedImage],
    plan: ViewPlan,
    labels: Labels,
    teacher_pass: TeacherPass,
    views: int,
    seconds: float,
) -> list[BatchCost]:
    """Have a teacher label all views of random images, into a store that is thrown away.

    Args:
        teacher: the one that there is.
        train: the training split, with its image files.
        images: of the data set, in file order.
        plan: the view plan.
        labels: what is stored.
        teacher_pass: how it is made.
        views: how many, about.
        seconds: after which no batch is begun.

    Raises:
        UserError: an image file is missing.
    """
    rng = np.random.default_rng(0)
    chosen = np.sort(rng.permutation(len(images))[: max(1, views // len(plan))])
    layout = plan_store(
        [images[image] for image in chosen],
        PaddedViews(plan, teacher.teacher.grid, teacher.divisor),
        # A shard is a batch, or a few, so that the sample can end after any.
        max([teacher_pass.batch_size, *teacher_pass.bucket_batch_sizes.values()]),
        len(train.classes) if labels.soft else 0,
    )
    # In random order: the seconds may end before all buckets had their turn.
    shards = list(layout.shards())
    shards = [shards[place] for place in rng.permutation(len(shards))]
    batches = [
        _places(np.array(batch), chosen, len(plan))
        for shard in shards
        for batch in batches_of(shard, layout, teacher_pass.model_dump())
    ]
    dataset = view_dataset(train, plan, ALL_OBJECTS)
    loader = view_loader(dataset, batches, teacher_pass.workers)
    with tempfile.TemporaryDirectory() as folder:
        writer = StoreWriter.create(Path(folder) / "sample.zarr", layout, {})
        labeller = ShardLabeller(teacher.teacher, labels.soft_settings(), writer)
        return _label(labeller, shards, loader, seconds)


def _places(views: npt.NDArray[np.int64], chosen: npt.NDArray[np.int64], plan: int) -> list[int]:
    """Where views of the chosen images stand among all views of the data set.

    Args:
        views: places among the views of the chosen images.
        chosen: places of these images in the data set.
        plan: number of views of an image.
    """
    places: list[int] = (chosen[views // plan] * plan + views % plan).tolist()
    return places


def _label(
    labeller: ShardLabeller, shards: Sequence[Shard], loader: DataLoader[Any], seconds: float
) -> list[BatchCost]:
    writer, layout = labeller.writer, labeller.writer.layout
    costs: list[BatchCost] = []
    began = before = time.perf_counter()

    def count(shard: Shard) -> None:
        nonlocal before
        bucket = layout.buckets[shard.bucket]
        arrays = writer.path / "buckets" / bucket.name
        sizes = {
            name: _row_bytes(arrays / name, shard.number, layout.rows_in_shard(bucket))
            for name in bucket.arrays(layout.soft_classes)
        }
        now = time.perf_counter()
        costs.append(BatchCost(bucket.padded, len(shard.views), now - before, sizes))
        before = now

    batches = iter(loader)
    with Background(AHEAD, labeller.teacher.device) as background:
        for shard in tqdm(shards, desc="sample", unit="batch"):
            labeller.label(shard, batches, background)
            background.submit(partial(count, shard))
            if time.perf_counter() - began > seconds:
                break
    return costs


def _row_bytes(array: Path, shard: int, shard_rows: int) -> int:
    """Bytes of a shard's rows, without its index."""
    (file,) = (f for f in (array / "c" / str(shard)).rglob("*") if f.is_file())
    return file.stat().st_size - index_bytes(shard_rows)


def index_bytes(shard_rows: int) -> int:
    """Bytes of a shard's index: offset and length of each row, and a checksum."""
    return 16 * shard_rows + 4
