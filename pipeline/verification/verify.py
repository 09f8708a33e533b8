"""Verifies a label store: everything in it, and a sample recomputed with the teacher."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from pipeline.data.coco import load_images
from pipeline.data.dataset import DataInfo, load_data_info
from pipeline.loading.collate import view_loader
from pipeline.project.errors import UserError
from pipeline.project.params import Params
from pipeline.project.paths import Paths
from pipeline.store.coding import (
    TAIL,
    SoftSettings,
    encode_share,
    encode_sides,
    tail_mean,
    tail_scale,
)
from pipeline.store.fingerprint import differences, digest
from pipeline.store.integrity import check_structure
from pipeline.store.reader import LabelStore, SoftScores
from pipeline.store.schema import ASSIGNED_GT
from pipeline.teacher_pass.labelling import (
    ask,
    batches_of,
    labels_fingerprint,
    load_teacher,
    numerics_of,
    view_dataset,
)
from pipeline.teacher_pass.teacher import Beliefs

SEED = 0
LISTED = 100
"""How many problems the report names; it counts all."""

_FLOAT16 = 2.0**-10
"""Relative distance of neighbouring float16 numbers; rounding is off by at most half of it."""
_ROUNDING = 1e-5


@dataclass
class Comparison:
    """Stored entries beside recomputed ones.

    Attributes:
        entries: how many were compared.
        differ: how many differ by more than their bound.
        largest: the largest difference.
    """

    entries: int = 0
    differ: int = 0
    largest: float = 0.0


@dataclass
class Verification:
    """What was checked and what is wrong.

    Attributes:
        store: where it is.
        problems: a line each.
        structure: how many views, buckets, shards and rows were read.
        recomputed_views: how many the teacher looked at again.
        comparisons: of them, by array.
        notices: what was not checked, and why.
    """

    store: Path
    problems: list[str] = field(default_factory=list)
    structure: dict[str, int] = field(default_factory=dict)
    recomputed_views: int = 0
    comparisons: dict[str, Comparison] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)

    def report(self, fingerprint: str | None) -> dict[str, Any]:
        """What `verify.json` holds: the same for the same store, as students depend on it."""
        return {
            "passed": not self.problems,
            "fingerprint": fingerprint,
            "structure": self.structure,
            "recomputed_views": self.recomputed_views,
            "compared": {
                name: {"entries": one.entries, "differ": one.differ}
                for name, one in self.comparisons.items()
            },
            "notices": self.notices,
            "problem_count": len(self.problems),
            "problems": self.problems[:LISTED],
        }


def verify_labels(
    params: Params, paths: Paths, sample: int | None, with_teacher: bool
) -> Verification:
    """Check the label store, and write `verify.json`.

    Args:
        params: the settings; only the number of loader processes counts.
        paths: where store, data and teacher are.
        sample: how many views the teacher looks at again, None for all.
        with_teacher: whether it does.

    Raises:
        UserError: there is no store.
    """
    if not paths.labels.exists():
        raise UserError(f"there is no label store at {paths.labels}; run `lad labels`")
    found = Verification(paths.labels)
    fingerprint = None
    try:
        store = LabelStore(paths.labels)
        fingerprint = digest(store.fingerprint)
        data = _check_structure(store, paths, found)
        if not with_teacher:
            found.notices.append("nothing was recomputed with the teacher (--no-teacher)")
        else:
            data = data or load_data_info(paths)
            _recompute(store, data, paths, params.labels.workers, sample, found)
    except UserError as error:
        found.problems.append(str(error))
    text = json.dumps(found.report(fingerprint), indent=1)
    (paths.root / "verify.json").write_text(text + "\n")
    return found


def _check_structure(store: LabelStore, paths: Paths, found: Verification) -> DataInfo | None:
    """The part without a teacher; returns the data set if it is there."""
    data = images = None
    try:
        data = load_data_info(paths)
        images = load_images(data.train.annotations)
    except UserError as error:
        found.notices.append(f"not compared with the data set: {error}")
    if data:
        ours = {
            "classes": list(data.classes),
            "annotations": data.train.annotations_digest,
            "images": data.train.images_digest,
        }
        lines = differences({"data": ours}, {"data": store.fingerprint["data"]})
        found.problems += [f"the store is not of this data set: {line}" for line in lines]
    found.structure = check_structure(store, images, found.problems)
    return data


def _recompute(
    store: LabelStore,
    data: DataInfo,
    paths: Paths,
    workers: int,
    sample: int | None,
    found: Verification,
) -> None:
    teacher, model = load_teacher(paths, data, numerics_of(store.fingerprint))
    soft = store.soft_settings()
    store.require(
        labels_fingerprint(data, teacher, model, store.plan(), soft),
        "this teacher, data set or machine (`--no-teacher` checks the rest)",
    )
    batches = _sample(store, sample)
    loader = view_loader(view_dataset(data, store.plan()), batches, workers)
    with _threads(store.made_with.get("threads")):
        for views, batch in zip(batches, tqdm(loader, desc="recompute"), strict=True):
            assignment, beliefs = ask(teacher, batch, soft)
            for place, view in enumerate(views):
                own = beliefs and Beliefs(
                    *(getattr(beliefs, f.name)[place].cpu() for f in fields(Beliefs))
                )
                _compare(store, view, assignment.objects[place].cpu(), own, soft, found)
    found.recomputed_views = sum(map(len, batches))


def _sample(store: LabelStore, sample: int | None) -> list[list[int]]:
    """Batches that the teacher labelled, with at least `sample` views in all.

    Whole batches, because a network's rounding depends on what is in a batch.
    """
    made_with = {"batch_size": 1} | store.made_with
    batches = [
        batch
        for shard in store.layout.shards()
        if store.complete[shard.bucket][shard.number] == 1
        for batch in batches_of(shard, store.layout, made_with)
    ]
    if sample is None:
        return batches
    chosen: list[list[int]] = []
    views = 0
    for index in np.random.default_rng(SEED).permutation(len(batches)):
        if views >= sample:
            break
        chosen.append(batches[index])
        views += len(batches[index])
    return chosen


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Compute with as many threads as the store's run: rounding depends on them, too."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _compare(
    store: LabelStore,
    view: int,
    objects: Tensor,
    beliefs: Beliefs | None,
    soft: SoftSettings | None,
    found: Verification,
) -> None:
    """Compare what is stored of a view with what the teacher says of it now."""
    try:
        assigned = torch.from_numpy(store.assigned(view).astype(np.int64))
        stored = store.soft(view) if soft else None
    except UserError:
        return  # already among the problems
    wrong = {ASSIGNED_GT: ((assigned - objects).abs().float(), assigned != objects)}
    if soft and stored and beliefs:
        wrong |= _compare_soft(stored, beliefs, soft)
    for name, (distance, differs) in wrong.items():
        total = found.comparisons.setdefault(name, Comparison())
        count = int(differs.sum())
        total.entries += differs.numel()
        total.differ += count
        total.largest = max(total.largest, float(distance.max()))
        if count:
            found.problems.append(
                f"{store.place(name, view)}: {count} of {differs.numel()} entries are not "
                f"what the teacher says (by up to {float(distance[differs].max()):.2g})"
            )


def _compare_soft(
    stored: SoftScores, beliefs: Beliefs, soft: SoftSettings
) -> dict[str, tuple[Tensor, Tensor]]:
    """For each array how far its entries are off, and whether that is too far."""
    coding = soft.scores
    codes, mean, scale, overlap, boxes, iou = (
        torch.from_numpy(getattr(stored, name).copy())
        for name in ("codes", "tail_mean", "tail_scale", "overlap", "boxes", "iou")
    )
    exact = beliefs.probabilities
    in_tail = codes.mT == TAIL
    distance = ((coding.decode(codes, mean, scale) - exact).abs()) * ~in_tail
    wrong = torch.where(
        in_tail,
        exact >= coding.cut + _ROUNDING,
        (distance > coding.max_error() + _ROUNDING) | (exact < coding.cut - _ROUNDING),
    )
    return {
        "cls_scores": (distance, wrong),
        "tail_mean": _off(mean, tail_mean(exact, codes, scale)),
        "tail_scale": _steps(scale, tail_scale(exact, codes)),
        "boxes": _steps(boxes, encode_sides(beliefs.boxes)),
        "overlap": _steps(overlap, encode_share(beliefs.overlap)),
        "iou": _steps(iou, encode_share(beliefs.iou)),
    }


def _off(stored: Tensor, exact: Tensor) -> tuple[Tensor, Tensor]:
    """The distance of float16 entries, and whether rounding does not explain it."""
    distance = (stored.double() - exact.double()).abs()
    return distance, distance > _ROUNDING + exact.double().abs() * (_FLOAT16 / 2 + _ROUNDING)


def _steps(stored: Tensor, expected: Tensor) -> tuple[Tensor, Tensor]:
    """The distance of codes: one step where the exact value lies on the border of two."""
    distance = (stored.int() - expected.int()).abs().float()
    return distance, distance > 1
