"""The teacher pass, against the teacher's bare inference loop on the same views."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from mmdet.models.detectors import PAA
from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from mmengine.dataset import pseudo_collate
from mmengine.device import get_device
from torch.utils.data import DataLoader

from benchmarks.measure import Figures, Row, alternate, medians
from benchmarks.synthetic import borrow_project, write_project
from pipeline.data.coco import load_images
from pipeline.data.dataset import DataInfo, load_data_info
from pipeline.detector.build import load_model_config, preprocessing, prior_grid
from pipeline.detector.model_folder import load_model
from pipeline.loading.collate import collate_views
from pipeline.project.params import Params
from pipeline.project.paths import Paths
from pipeline.store.schema import StoreLayout, plan_store
from pipeline.teacher_pass.labelling import batches_of, view_dataset
from pipeline.teacher_pass.run import precompute_labels
from pipeline.views.plan import view_plan

LARGE_CONFIG = "configs/paa_r50.py"
LARGE_SIZE = (1333, 800)
LARGE_BATCH = 2

Collate = Callable[[Sequence[Any]], Any]


def infer(params: Params, paths: Paths, collate: Collate = pseudo_collate) -> int:
    """The bare loop: load the network, then load views and run it on them, as mmdet does.

    Args:
        params: the settings.
        paths: where data and teacher are.
        collate: makes a batch; mmengine's, or ours.

    Returns:
        The number of views.
    """
    data = load_data_info(paths)
    detector, model = load_model(paths.teacher, "lad teacher")
    detector.to(get_device())
    preprocess = MODELS.build(model.data_preprocessor).to(get_device())
    layout = _layout(params, data, detector, model)
    loader: DataLoader[Any] = DataLoader(
        view_dataset(data, view_plan(params.views)),
        batch_sampler=[
            batch
            for shard in layout.shards()
            for batch in batches_of(shard, layout, params.labels.model_dump())
        ],
        num_workers=params.labels.workers,
        collate_fn=collate,
    )
    views = 0
    with torch.inference_mode():
        for batch in loader:
            ready = preprocess(batch)
            detector.bbox_head(detector.extract_feat(ready["inputs"]))
            views += len(ready["inputs"])
    return views


def _layout(params: Params, data: DataInfo, detector: PAA, model: ConfigDict) -> StoreLayout:
    return plan_store(
        load_images(data.train.annotations),
        view_plan(params.views),
        prior_grid(detector.bbox_head),
        preprocessing(model)["pad_size_divisor"],
        params.labels.shard_rows,
        0,
    )


def settings_of_part(params: Params, paths: Paths) -> Params:
    """The settings for some of a project's images: a pass refuses sizes of buckets without views.

    Args:
        params: the settings.
        paths: where those images and the teacher are.
    """
    data = load_data_info(paths)
    layout = _layout(params, data, *load_model(paths.teacher, "lad teacher"))
    names = [bucket.name for bucket in layout.buckets]
    sizes = {name: n for name, n in params.labels.bucket_batch_sizes.items() if name in names}
    labels = params.labels.model_copy(update={"bucket_batch_sizes": sizes})
    return params.model_copy(update={"labels": labels})


def measure_pass(
    params: Params,
    paths: Paths,
    images: int,
    repeats: int,
    at_least: float,
    what: str,
    with_our_batches: bool = True,
) -> Figures:
    """Time whole passes, from loading the teacher to the report, and as much of the bare loop.

    Args:
        params: the settings; soft scores are always written.
        paths: where data and teacher are.
        images: of the data set to take.
        repeats: of each.
        at_least: the bar.
        what: names the teacher.
        with_our_batches: whether the loop runs with batches as the pass hands them over, too.
    """
    labels = params.labels.model_copy(update={"soft": True})
    params = params.model_copy(update={"labels": labels})
    with tempfile.TemporaryDirectory() as folder:
        bare = borrow_project(paths, Path(folder) / "bare", images)
        params = settings_of_part(params, bare)
        views = infer(params, bare)
        fresh = {
            number: borrow_project(paths, Path(folder) / str(number), images)
            for number in range(-1, repeats)
        }
        reports: dict[int, dict[str, Any]] = {}

        def run(number: int) -> None:
            reports[number] = precompute_labels(params, fresh[number], replace=False)

        ways: dict[str, Callable[[int], object]] = {
            "pass": run,
            "bare": lambda _: infer(params, bare),
        }
        if with_our_batches:
            ways["bare, our batches"] = lambda _: infer(params, bare, collate_views)
        seconds = medians(alternate(ways, repeats))
    rate = f"teacher pass, {what}", views / seconds["pass"]
    rows = [
        Row(*rate, "bare inference loop", views / seconds["bare"], "views/s", at_least=at_least)
    ]
    if with_our_batches:
        theirs = "the same, batches handed over as in the pass"
        rows.append(Row(*rate, theirs, views / seconds["bare, our batches"], "views/s"))
    details = {"views": views, "seconds": seconds, "report": reports[repeats - 1]}
    return Figures(rows, f"{views} views, hard labels and soft scores written", details)


def measure_large_pass(images: int, repeats: int) -> Figures:
    """The pass of a PAA R-50 with random weights at COCO's size."""
    with tempfile.TemporaryDirectory() as folder:
        params, paths = write_project(
            Path(folder),
            load_model_config(LARGE_CONFIG),
            images,
            LARGE_SIZE,
            classes=80,
            labels={"batch_size": LARGE_BATCH, "workers": 1},
        )
        what = "PAA R-50 at 1333 x 800, random weights"
        return measure_pass(params, paths, images, repeats, 0.97, what, with_our_batches=False)
