"""The teacher pass, against the teacher's bare inference loop on the same views."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from mmdet.models.detectors import SingleStageDetector
from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from mmengine.dataset import pseudo_collate
from mmengine.device import get_device
from torch.utils.data import DataLoader

from benchmarks.measure import Figures, Ratio, alternate, medians
from benchmarks.random_teacher import CONFIGS
from benchmarks.synthetic import borrow_project, quieten, write_project
from pipeline.data.coco import load_images
from pipeline.data.dataset import CheckedSplit, load_split
from pipeline.detector.build import load_model_config, preprocessing
from pipeline.detector.model_folder import load_model
from pipeline.heads.registry import family_of
from pipeline.loading.collate import collate_views
from pipeline.loading.dataset import view_dataset
from pipeline.loading.transforms import ALL_OBJECTS
from pipeline.project.machine import loader_processes
from pipeline.project.paths import Paths
from pipeline.store.schema import StoreLayout, plan_store
from pipeline.teacher_pass.label import batches_of
from pipeline.teacher_pass.run import fill_store
from pipeline.teacher_pass.settings import Labels, TeacherPass
from pipeline.views.plan import view_plan
from pipeline.views.priors import PaddedViews
from pipeline.views.settings import Views

LARGE_CONFIG = CONFIGS / "paa_r50.py"
LARGE_SIZE = (1333, 800)
LARGE_BATCH = 2
OTHER_HEADS = ("gfl", "tood", "rtmdet")
OTHER_SIZE = (256, 192)
OTHER_BAR = 0.8
"""The rate of their passes over that of the bare loop, at least."""

Collate = Callable[[Sequence[Any]], Any]


def infer(
    teacher_pass: TeacherPass, views: Views, paths: Paths, collate: Collate = pseudo_collate
) -> int:
    """The bare loop: load the network, then load views and run it on them, as mmdet does.

    Args:
        teacher_pass: the settings.
        views: which views there are.
        paths: where data and teacher are.
        collate: makes a batch; mmengine's, or ours.

    Returns:
        The number of views.
    """
    split = load_split(paths, "train")
    detector, model = load_model(paths.teacher, "lad teacher")
    detector.to(get_device())
    preprocess = MODELS.build(model.data_preprocessor).to(get_device())
    layout = _layout(teacher_pass, views, split, detector, model)
    loader: DataLoader[Any] = DataLoader(
        view_dataset(split, view_plan(views), ALL_OBJECTS),
        batch_sampler=[
            batch
            for shard in layout.shards()
            for batch in batches_of(shard, layout, teacher_pass.model_dump())
        ],
        num_workers=loader_processes(teacher_pass.workers),
        collate_fn=collate,
    )
    shown = 0
    with torch.inference_mode():
        for batch in loader:
            ready = preprocess(batch)
            detector.bbox_head(detector.extract_feat(ready["inputs"]))
            shown += len(ready["inputs"])
    return shown


def _layout(
    teacher_pass: TeacherPass,
    views: Views,
    split: CheckedSplit,
    detector: SingleStageDetector,
    model: ConfigDict,
) -> StoreLayout:
    divisor = preprocessing(model)["pad_size_divisor"]
    padded_views = PaddedViews(view_plan(views), family_of(detector.bbox_head).grid, divisor)
    return plan_store(load_images(split.annotations), padded_views, teacher_pass.shard_rows, 0)


def pass_over_part(teacher_pass: TeacherPass, views: Views, paths: Paths) -> TeacherPass:
    """The settings of a pass over some of a project's images.

    A pass refuses a batch size for a bucket without views, and some images may have none in it.

    Args:
        teacher_pass: the settings for all images.
        views: which views there are.
        paths: where those images and the teacher are.
    """
    split = load_split(paths, "train")
    layout = _layout(teacher_pass, views, split, *load_model(paths.teacher, "lad teacher"))
    names = [bucket.name for bucket in layout.buckets]
    sizes = {name: size for name, size in teacher_pass.bucket_batch_sizes.items() if name in names}
    return teacher_pass.model_copy(update={"bucket_batch_sizes": sizes})


def measure_pass(
    labels: Labels,
    teacher_pass: TeacherPass,
    views: Views,
    paths: Paths,
    images: int,
    repeats: int,
    at_least: float,
    what: str,
    with_our_batches: bool = True,
) -> Figures:
    """Time whole passes, from loading the teacher to the report, and as much of the bare loop.

    Args:
        labels: what is stored; soft scores always.
        teacher_pass: how it is made.
        views: which views there are.
        paths: where data and teacher are.
        images: of the data set to take.
        repeats: of each.
        at_least: the bar.
        what: names the teacher.
        with_our_batches: whether the loop runs with batches as the pass hands them over, too.
    """
    with tempfile.TemporaryDirectory() as folder:
        bare = borrow_project(paths, Path(folder) / "bare", images)
        labels = labels.model_copy(update={"soft": True})
        teacher_pass = pass_over_part(teacher_pass, views, bare)
        count = infer(teacher_pass, views, bare)
        fresh = {
            number: borrow_project(paths, Path(folder) / str(number), images)
            for number in range(-1, repeats)
        }
        reports: dict[int, dict[str, Any]] = {}

        def run(number: int) -> None:
            reports[number] = fill_store(labels, teacher_pass, views, fresh[number], replace=False)

        ways: dict[str, Callable[[int], object]] = {
            "pass": run,
            "bare": lambda _: infer(teacher_pass, views, bare),
        }
        if with_our_batches:
            ways["bare, our batches"] = lambda _: infer(teacher_pass, views, bare, collate_views)
        seconds = medians(alternate(ways, repeats))
    ours, unit = count / seconds["pass"], "views/s"
    ratios = [
        Ratio(
            f"teacher pass, {what}",
            ours,
            "bare inference loop",
            count / seconds["bare"],
            unit,
            at_least=at_least,
        )
    ]
    if with_our_batches:
        theirs = "the same, batches handed over as in the pass"
        rate = count / seconds["bare, our batches"]
        ratios.append(Ratio(f"teacher pass, {what}", ours, theirs, rate, unit))
    details = {"views": count, "seconds": seconds, "report": reports[repeats - 1]}
    return Figures(ratios, f"{count} views, hard labels and soft scores written", details)


def measure_large_pass(images: int, repeats: int) -> Figures:
    """The pass of a PAA R-50 with random weights at COCO's size."""
    with tempfile.TemporaryDirectory() as folder:
        params, paths = write_project(
            Path(folder),
            load_model_config(LARGE_CONFIG),
            images,
            LARGE_SIZE,
            classes=80,
            teacher_pass={"batch_size": LARGE_BATCH, "workers": 1},
        )
        what = "PAA R-50 at 1333 x 800, random weights"
        return measure_pass(
            params.labels,
            params.teacher_pass,
            params.views,
            paths,
            images,
            repeats,
            0.97,
            what,
            with_our_batches=False,
        )


def measure_other_heads(images: int, repeats: int) -> Iterator[Figures]:
    """Passes of heads whose assignment is mmdet's, of half width, with random weights."""
    for head in OTHER_HEADS:
        file = CONFIGS / f"{head}_r18_half.py"
        with tempfile.TemporaryDirectory() as folder:
            params, paths = write_project(
                Path(folder),
                load_model_config(file),
                images,
                OTHER_SIZE,
                teacher_pass={"workers": 1},
            )
            quieten(paths)
            project = params.labels, params.teacher_pass, params.views, paths
            what = f"{file.stem}, random weights"
            yield measure_pass(*project, images, repeats, OTHER_BAR, what, with_our_batches=False)
