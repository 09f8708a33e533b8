"""The teacher pass: run the teacher over every view once and fill the label store."""

import pipeline.mmcv_ops  # noqa: F401

import fcntl
import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import ConfigDict
from mmengine.dataset import pseudo_collate
from mmengine.device import get_device
from torch.utils.data import DataLoader
from tqdm import tqdm

from pipeline.assignment.paa import BACKGROUND
from pipeline.checkpoint import load_model, weights_digest
from pipeline.coco import Objects, load_images
from pipeline.dataset import DataInfo, load_data_info
from pipeline.detector import preprocessing
from pipeline.errors import UserError
from pipeline.params import Params
from pipeline.paths import Paths
from pipeline.quantise import SoftSettings
from pipeline.replay import ViewDataset, view_pipeline
from pipeline.store.fingerprint import Fingerprint, label_parts
from pipeline.store.reader import LabelStore
from pipeline.store.schema import ASSIGNED_GT, SOFT_ARRAYS, Shard, StoreLayout, plan_store
from pipeline.store.writer import StoreWriter
from pipeline.teacher import Teacher
from pipeline.views import View, view_plan

VERSIONS = ("torch", "torchvision", "onedl-mmdetection", "onedl-mmcv", "opencv-python-headless")


def precompute_labels(params: Params, paths: Paths, replace: bool) -> dict[str, Any]:
    """Fill the label store, continuing one that is incomplete.

    Args:
        params: the settings.
        paths: where data and teacher are, and where the store goes.
        replace: start a new store where there is one with another fingerprint.

    Returns:
        The report: counts, seconds, sizes.

    Raises:
        UserError: data or teacher are missing, the store that is there has another fingerprint,
            or another process is writing it.
    """
    data = load_data_info(paths)
    detector, model = load_model(paths.teacher, "lad teacher")
    if detector.bbox_head.num_classes != len(data.classes):
        raise UserError(
            f"the teacher in {paths.teacher} knows {detector.bbox_head.num_classes} classes, "
            f"the data set has {len(data.classes)}: {', '.join(data.classes)}"
        )
    teacher = Teacher(detector.to(get_device()))
    plan = view_plan(params.views)
    images = load_images(data.train.annotations)
    layout = plan_store(
        images,
        plan,
        teacher.grid,
        preprocessing(model)["pad_size_divisor"],
        params.labels.shard_rows,
        len(data.classes) if params.labels.soft else 0,
    )
    fingerprint = labels_fingerprint(data, teacher, model, plan, SoftSettings.of(params.labels))
    with _only_writer(paths.labels):
        writer = _open_store(paths.labels, layout, fingerprint, replace)
        pending = list(writer.pending())
        seconds, fallbacks = _run(writer, pending, teacher, data, plan, params)
    if not pending and paths.labels_report.is_file():
        report: dict[str, Any] = json.loads(paths.labels_report.read_text())
        return report
    done = sum(len(shard.views) for shard in pending)
    report = _report(paths.labels, len(images), len(plan), seconds / done if done else None)
    report["fallback_objects"] = fallbacks
    paths.labels_report.write_text(json.dumps(report, indent=1))
    return report


def labels_fingerprint(
    data: DataInfo,
    teacher: Teacher,
    model: ConfigDict,
    plan: tuple[View, ...],
    soft: SoftSettings | None,
) -> Fingerprint:
    """Everything that the labels depend on."""
    divisor = preprocessing(model)["pad_size_divisor"]
    return label_parts(data, plan, teacher.grid, divisor) | {
        "teacher": {
            "weights": weights_digest(teacher.detector.state_dict()),
            "model": {part: model[part].to_dict() for part in ("backbone", "neck", "bbox_head")},
        },
        "preprocessing": preprocessing(model),
        "coding": asdict(soft) if soft else None,
        "assignment": model.train_cfg.to_dict(),
        "numerics": {"device": teacher.device.type, "dtype": "float32"},
        "versions": {name: version(name) for name in VERSIONS},
    }


def view_dataset(data: DataInfo, plan: tuple[View, ...]) -> ViewDataset:
    """All views of the training images, with all their objects."""
    return ViewDataset(
        plan=plan,
        annotations=data.train.annotations,
        images=data.train.images_folder,
        classes=data.classes,
        pipeline=view_pipeline(dict(type="KeepObjects"), meta_keys=["objects"]),
    )


def label_batch(
    teacher: Teacher, batch: dict[str, Any], soft: SoftSettings | None
) -> tuple[dict[str, np.ndarray], int]:
    """The rows of views with the same padded size.

    Args:
        teacher: decides.
        batch: B collated items of `view_dataset`.
        soft: how soft scores are stored, if at all.

    Returns:
        What to write by array name, each (B, ...), and the number of objects that fell back.
    """
    ready = teacher.detector.data_preprocessor(batch)
    objects = [
        Objects(
            boxes=sample.metainfo["objects"]["boxes"].astype(np.float64),
            labels=sample.metainfo["objects"]["labels"],
            crowd=sample.metainfo["objects"]["crowd"],
        )
        for sample in ready["data_samples"]
    ]
    padded = tuple(ready["inputs"].shape[-2:])
    outputs = teacher.forward(ready["inputs"])
    assignment = teacher.assign(outputs, objects, padded)
    rows = {ASSIGNED_GT: assignment.objects.to(torch.int16)}
    if soft:
        beliefs = teacher.believe(outputs, objects, padded, soft.min_iou)
        rows["cls_scores"], rows["tail_mean"] = soft.scores.encode(beliefs.probabilities)
        rows |= {name: getattr(beliefs, name).half() for name in ("overlap", "boxes", "iou")}
    return {name: values.cpu().numpy() for name, values in rows.items()}, assignment.fallbacks


def _open_store(
    path: Path, layout: StoreLayout, fingerprint: Fingerprint, replace: bool
) -> StoreWriter:
    if not path.exists():
        return StoreWriter.create(path, layout, fingerprint)
    try:
        store = LabelStore(path)
        store.require(fingerprint, "these settings")
    except UserError as error:
        if not replace:
            raise UserError(f"{error}\n(nothing was changed)") from None
        shutil.rmtree(path)
        return StoreWriter.create(path, layout, fingerprint)
    # An unfinished store goes on with the shards that it was begun with.
    return StoreWriter(path, store.layout)


@contextmanager
def _only_writer(path: Path) -> Iterator[None]:
    """Hold the lock beside the store; the system releases it when the process ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(path.name + ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another process is writing the store {path}; wait for it or stop it"
            ) from None
        yield


def _run(
    writer: StoreWriter,
    pending: list[Shard],
    teacher: Teacher,
    data: DataInfo,
    plan: tuple[View, ...],
    params: Params,
) -> tuple[float, int]:
    """Label the pending shards; the seconds that took, and the objects that fell back."""
    size = params.labels.batch_size
    batches = [
        shard.views[start : start + size].tolist()
        for shard in pending
        for start in range(0, len(shard.views), size)
    ]
    loader: DataLoader[Any] = DataLoader(
        view_dataset(data, plan),
        batch_sampler=batches,
        num_workers=params.labels.workers,
        collate_fn=pseudo_collate,
    )
    total = sum(len(shard.views) for shard in writer.layout.shards())
    left = sum(len(shard.views) for shard in pending)
    soft = SoftSettings.of(params.labels)
    fallbacks = 0
    started = time.perf_counter()
    incoming = iter(loader)
    with tqdm(total=total, initial=total - left, desc="labels", unit="view", mininterval=2) as bar:
        for shard in pending:
            parts: list[dict[str, np.ndarray]] = []
            done = 0
            while done < len(shard.views):
                rows, fell_back = label_batch(teacher, next(incoming), soft)
                parts.append(rows)
                fallbacks += fell_back
                done += len(rows[ASSIGNED_GT])
                bar.update(len(rows[ASSIGNED_GT]))
            writer.write(
                shard, {name: np.concatenate([rows[name] for rows in parts]) for name in rows}
            )
    return time.perf_counter() - started, fallbacks


def _report(
    path: Path, images: int, views_per_image: int, seconds_per_view: float | None
) -> dict[str, Any]:
    store = LabelStore(path)
    views = images * views_per_image
    positives = objects = 0
    for view in range(views):
        assigned = store.assigned(view)
        learnt = assigned[assigned != BACKGROUND]
        positives += len(learnt)
        objects += len(np.unique(learnt))
    sizes = {
        name: sum(f.stat().st_size for f in path.glob(f"buckets/*/{name}/**/*") if f.is_file())
        for name in (ASSIGNED_GT, *SOFT_ARRAYS)
    }
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return {
        "images": images,
        "views": views,
        "views_per_image": views_per_image,
        "seconds": None if seconds_per_view is None else seconds_per_view * views,
        "views_per_second": None if seconds_per_view is None else 1 / seconds_per_view,
        "bytes_on_disk": size,
        "bytes_per_view": size / views,
        "bytes_per_view_by_array": {name: size / views for name, size in sizes.items() if size},
        "objects_with_positives": objects,
        "positives_per_object": positives / max(objects, 1),
    }
