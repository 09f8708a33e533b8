"""Verifies a label store: everything in it, and a sample recomputed with the teacher."""

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from pipeline.data.coco import load_images
from pipeline.data.dataset import CheckedSplit, load_split
from pipeline.loading.collate import view_loader
from pipeline.loading.dataset import view_dataset
from pipeline.loading.transforms import ALL_OBJECTS
from pipeline.project.digests import differences
from pipeline.project.errors import UserError
from pipeline.project.files import remove_folder, write_whole
from pipeline.project.paths import Paths
from pipeline.store.coding import (
    TAIL,
    SoftSettings,
    encode_distances,
    encode_fraction,
    tail_mean,
    tail_scale,
)
from pipeline.store.fingerprint import data_part
from pipeline.store.integrity import check_structure, linked_damage
from pipeline.store.positives import count_objects, count_positives, doubt
from pipeline.store.reader import LabelStore, no_store
from pipeline.store.schema import ASSIGNED_GT, unfinished
from pipeline.store.soft_scores import SoftScores
from pipeline.teacher_pass.fingerprint import code_and_versions, labels_fingerprint, numerics_of
from pipeline.teacher_pass.label import batches_of, label_views, load_teacher, run_network
from pipeline.teacher_pass.teacher import SoftPredictions

SEED = 0
COUNTED = 4096
"""Views whose positives are counted, at most."""
LISTED = 100
"""How many problems the report names; it counts all."""

_FLOAT16 = 2.0**-10
"""Relative distance of neighbouring float16 numbers; rounding is off by at most half of it."""
_ROUNDING = 1e-5


@dataclass
class EntryDifferences:
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
        store: the folder of the store.
        problems: a line each.
        structure: how many views, buckets, shards and rows were read.
        recomputed_views: how many the teacher looked at again.
        comparisons: of them, by array.
        notices: what was not checked, and why.
        made_with: the library versions that made the store, as far as they are known.
    """

    store: Path
    problems: list[str] = field(default_factory=list)
    structure: dict[str, int] = field(default_factory=dict)
    recomputed_views: int = 0
    comparisons: dict[str, EntryDifferences] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)
    made_with: dict[str, str] = field(default_factory=dict)

    def report(self, fingerprint: str | None) -> dict[str, Any]:
        """What `verify.json` holds: the same for the same store, as students depend on it."""
        return {
            "passed": not self.problems,
            "fingerprint": fingerprint,
            "made_with": self.made_with,
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


def verify_labels(paths: Paths, sample: int | None, with_teacher: bool) -> Verification:
    """Check the label store, and write `verify.json`.

    A store that other code or library versions made is checked like any: what the teacher says now
    is compared with what is stored.

    Args:
        paths: where store, data and teacher are.
        sample: how many views the teacher looks at again, None for all.
        with_teacher: whether it does.

    Raises:
        UserError: there is no store.
    """
    if not paths.labels.exists():
        raise no_store(paths.labels)
    found = Verification(paths.labels)
    fingerprint = None
    try:
        store = LabelStore(paths.labels)
        fingerprint = store.fingerprint_digest
        store.require_complete()
        _remove_spare(store, paths.labels)
        found.made_with = store.made_with.get("versions", {})
        train = _check_structure(store, paths, found)
        if not with_teacher:
            found.notices.append("nothing was recomputed with the teacher (--no-teacher)")
        else:
            _recompute(store, train or load_split(paths, "train"), paths, sample, found)
    except UserError as error:
        found.problems.append(str(error))
    write_whole(paths.verification, json.dumps(found.report(fingerprint), indent=1) + "\n")
    return found


def _remove_spare(store: LabelStore, path: Path) -> None:
    """Remove what `lad labels --spare` has left: who verifies a store has it safe."""
    with suppress(UserError):
        beside = LabelStore(unfinished(path))
        if beside.finished and beside.fingerprint_digest == store.fingerprint_digest:
            remove_folder(unfinished(path))


def checked_with() -> dict[str, str]:
    """The library versions that check a store here."""
    versions: dict[str, str] = code_and_versions()["versions"]
    return versions


def _check_structure(store: LabelStore, paths: Paths, found: Verification) -> CheckedSplit | None:
    """The part without a teacher; returns the training split if it is there."""
    train = images = None
    try:
        train = load_split(paths, "train")
        images = load_images(train.annotations)
    except UserError as error:
        found.notices.append(f"not compared with the data set: {error}")
    if train:
        lines = differences({"data": data_part(train)}, {"data": store.fingerprint["data"]})
        found.problems += [f"the store is not of this data set: {line}" for line in lines]
    found.structure = check_structure(store, images, found.problems)
    if found.problems:
        found.notices += linked_damage(store)
    if images and not found.problems:
        views = np.random.default_rng(SEED).permutation(len(store))[:COUNTED].tolist()
        objects = round(count_objects(images, store.plan()) * len(views) / len(store))
        if said := doubt(len(count_positives(store, views).per_object), objects):
            found.notices.append(said)
    return train


def _recompute(
    store: LabelStore, train: CheckedSplit, paths: Paths, sample: int | None, found: Verification
) -> None:
    teacher, model = load_teacher(paths, train, numerics_of(store.fingerprint))
    soft = store.soft_settings()
    store.require(
        labels_fingerprint(train, teacher, model, store.plan(), soft),
        "this teacher, data set or machine (`--no-teacher` checks the rest)",
    )
    batches = _sample(store, sample)
    dataset = view_dataset(train, store.plan(), ALL_OBJECTS)
    loader = view_loader(dataset, batches, None)
    with _threads(store.made_with.get("threads")):
        for views, batch in zip(batches, tqdm(loader, desc="recompute"), strict=True):
            assignment, predicted = label_views(teacher, run_network(teacher, batch), soft)
            for place, view in enumerate(views):
                own = predicted and SoftPredictions(
                    *(getattr(predicted, f.name)[place].cpu() for f in fields(SoftPredictions))
                )
                gt_inds = assignment.assigned_gt_inds[place].cpu()
                _compare(store, view, gt_inds, own, soft, found)
    found.recomputed_views = sum(map(len, batches))


def _sample(store: LabelStore, sample: int | None) -> list[list[int]]:
    """Batches that the teacher labelled, with at least `sample` views in all.

    Whole batches, because a network's rounding depends on what is in a batch.
    """
    made_with = {"batch_size": 1} | store.made_with
    batches = [
        batch
        for shard in store.layout.shards()
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
    gt_inds: Tensor,
    predicted: SoftPredictions | None,
    soft: SoftSettings | None,
    found: Verification,
) -> None:
    """Compare what is stored of a view with what the teacher says of it now."""
    try:
        assigned = torch.from_numpy(store.assigned(view).astype(np.int64))
        stored = store.soft(view) if soft else None
    except UserError:
        return  # already among the problems
    wrong = {ASSIGNED_GT: ((assigned - gt_inds).abs().float(), assigned != gt_inds)}
    if soft and stored and predicted:
        wrong |= _compare_soft(stored, predicted, soft)
    for name, (distance, differs) in wrong.items():
        total = found.comparisons.setdefault(name, EntryDifferences())
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
    stored: SoftScores, predicted: SoftPredictions, soft: SoftSettings
) -> dict[str, tuple[Tensor, Tensor]]:
    """For each array how far its entries are off, and whether that is too far."""
    coding = soft.scores
    codes, mean, scale, distances, *box_quality = (
        torch.from_numpy(getattr(stored, name).copy())
        for name in ("codes", "tail_mean", "tail_scale", "distances", "max_iou", "quality")
    )
    exact = predicted.probabilities
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
        "distances": _steps(distances, encode_distances(predicted.distances)),
        "box_quality": _steps(
            torch.stack(box_quality),
            encode_fraction(torch.stack((predicted.max_iou, predicted.quality))),
        ),
    }


def _off(stored: Tensor, exact: Tensor) -> tuple[Tensor, Tensor]:
    """The distance of float16 entries, and whether rounding does not explain it."""
    distance = (stored.double() - exact.double()).abs()
    return distance, distance > _ROUNDING + exact.double().abs() * (_FLOAT16 / 2 + _ROUNDING)


def _steps(stored: Tensor, expected: Tensor) -> tuple[Tensor, Tensor]:
    """The distance of codes: one step where the exact value lies on the border of two."""
    distance = (stored.int() - expected.int()).abs().float()
    return distance, distance > 1
