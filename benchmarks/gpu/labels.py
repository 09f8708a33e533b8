"""Labels made on a GPU: against mmdet's own online LAD there, and against a CPU's.

Shapes: B views on one grid of P priors, N candidates. Boxes are xyxy in pixels of the view.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from mmdet.models.dense_heads import LADHead
from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from mmengine.device import get_device
from torch import Tensor

from benchmarks.measure import Figures, Ratio
from benchmarks.random_teacher import CONFIGS
from pipeline.assignment.paa import list_candidates
from pipeline.data.dataset import CheckedSplit, load_split
from pipeline.data.ground_truth import BACKGROUND
from pipeline.heads.paa_costs import HeadOutputs, candidate_costs
from pipeline.ingest.prepare import prepare_data
from pipeline.ingest.settings import BUILT_IN_DATA
from pipeline.loading.collate import view_loader
from pipeline.loading.dataset import view_dataset
from pipeline.loading.transforms import ALL_OBJECTS
from pipeline.project.paths import Paths
from pipeline.store.reader import LabelStore
from pipeline.teacher.make import make_teacher
from pipeline.teacher_pass.label import (
    ForwardPass,
    batches_of,
    load_teacher,
    run_network,
)
from pipeline.teacher_pass.run import fill_store
from pipeline.teacher_pass.teacher import Teacher
from pipeline.verification.verify import verify_labels
from stages.params import Params


def measure(quick: bool) -> Iterator[Figures]:
    """Fill a store on this device with a teacher trained for seconds, and compare its labels."""
    with tempfile.TemporaryDirectory() as folder:
        params, paths = _project(Path(folder), quick)
        fill_store(params.labels, params.teacher_pass, params.views, paths, replace=False)
        yield _verified(paths)
        store, split = LabelStore(paths.labels), load_split(paths, "train")
        yield _against_mmdet(store, split, paths)
        yield _against_cpu(store, split, paths)


def _project(folder: Path, quick: bool) -> tuple[Params, Paths]:
    sizes = [(128, 96), (96, 128)] if quick else [(512, 384), (384, 512)]
    images, epochs = (8, 1) if quick else (96, 6)
    params = Params.model_validate(
        {
            "data": {
                "source": BUILT_IN_DATA,
                "digits": {"train_images": images, "val_images": 1, "sizes": sizes},
            },
            "views": {"scales": [sizes[0]]},
            "teacher": {
                "config": str(CONFIGS / "paa_r18_half.py"),
                "training": {"epochs": epochs, "batch_size": 8, "warmup_steps": 5},
            },
            "teacher_pass": {"batch_size": 8, "shard_rows": 16},
            "evaluation": {"scale": sizes[0]},
        }
    )
    paths = Paths(folder)
    prepare_data(params.data, paths)
    make_teacher(params.teacher, params.views, paths)
    return params, paths


def _verified(paths: Paths) -> Figures:
    """The store, filled while the network ran on, against labels made one batch after the other."""
    found = verify_labels(paths, sample=None, with_teacher=True)
    entries = sum(one.entries for one in found.comparisons.values())
    differ = sum(one.differ for one in found.comparisons.values())
    ratio = Ratio("entries of the store", entries - differ, "recomputed", entries, "", at_least=1)
    note = f"a store of {found.recomputed_views} views, and the same made one batch after the other"
    details: dict[str, Any] = {"problems": found.problems}
    return Figures([ratio], note, details, "the store is not valid" if found.problems else "")


class DoubleLADHead(LADHead):
    """mmdet's head, which hands its costs to scikit-learn in float64 instead of float32."""

    def paa_reassign(self, pos_losses: Tensor, *args: Any) -> tuple:
        """What mmdet's does, of the same costs."""
        result: tuple = super().paa_reassign(pos_losses.double(), *args)
        return result


def _mmdets_head(head: type[LADHead], model: ConfigDict, state: dict[str, Tensor]) -> LADHead:
    MODELS.register_module(module=head, force=True)
    config = dict(type=head.__name__, train_cfg=model.train_cfg, test_cfg=model.test_cfg)
    built: LADHead = MODELS.build(ConfigDict(model.bbox_head, **config))
    built.load_state_dict(state)
    return built.to(get_device()).eval()


def _batches(
    store: LabelStore, split: CheckedSplit, teacher: Teacher
) -> Iterator[tuple[list[int], dict[str, Any], ForwardPass]]:
    """The views of each batch of the pass, that batch, and what the network says of it."""
    places = [
        batch
        for shard in store.layout.shards()
        for batch in batches_of(shard, store.layout, store.made_with)
    ]
    loader = view_loader(view_dataset(split, store.plan(), ALL_OBJECTS), places, 0)
    for views, batch in zip(places, loader, strict=True):
        yield views, batch, run_network(teacher, batch)


def _against_mmdet(store: LabelStore, split: CheckedSplit, paths: Paths) -> Figures:
    """The store against mmdet's `get_label_assignment` on the same outputs, view by view."""
    teacher, model = load_teacher(paths, split)
    state = teacher.head.state_dict()
    single, double = (_mmdets_head(head, model, state) for head in (LADHead, DoubleLADHead))
    background = single.num_classes
    priors = equal = ties = wrong = positives = 0
    for views, batch, shown in _batches(store, split, teacher):
        ready = teacher.detector.data_preprocessor(batch)
        stored = torch.stack([torch.tensor(store.assigned(view)) for view in views])
        theirs = _mmdets(single, shown, ready["data_samples"])
        ours = _as_mmdet(stored, shown, background)
        same = _same(ours, theirs, background)
        if not same.all():
            # scikit-learn works in the type of its input, mmdet's float32. That its rounding makes
            # a tie is shown by mmdet's own code on the same costs in float64: it agrees.
            theirs = _mmdets(double, shown, ready["data_samples"])
            agrees = _same(ours, theirs, background)
            ties += int((~same & agrees).sum())
            wrong += int((~same & ~agrees).sum())
        priors += same.numel()
        equal += int(same.sum())
        positives += int((stored != BACKGROUND).sum())
    ratio = Ratio("priors as mmdet assigns them", equal + ties, "all", priors, "", at_least=1)
    note = (
        f"{priors} priors, of them {positives} positive: {equal} as mmdet's online LAD on the same "
        f"device, {ties} as mmdet's with its costs in float64 (ties of its float32), {wrong} "
        "otherwise"
    )
    found = {"priors": priors, "positives": positives, "equal": equal, "ties": ties, "wrong": wrong}
    return Figures([ratio], note, found, "labels are not mmdet's" if wrong else "")


@dataclass(frozen=True)
class _Learnt:
    """What each prior learns: its class (B * P,), and its box (B * P, 4) if it is positive."""

    labels: Tensor
    boxes: Tensor


def _mmdets(head: LADHead, shown: ForwardPass, samples: list[Any]) -> _Learnt:
    with torch.no_grad():
        labels, _, boxes, *_ = head.get_label_assignment(
            *shown.outputs,
            [sample.gt_instances for sample in samples],
            [sample.metainfo for sample in samples],
            [sample.ignored_instances for sample in samples],
        )
    return _Learnt(labels.cpu(), boxes.cpu())


def _as_mmdet(assigned: Tensor, shown: ForwardPass, background: int) -> _Learnt:
    """What mmdet would say of an assignment (B, P)."""
    boxes, labels = shown.truth.boxes.cpu(), shown.truth.labels.cpu()
    image, _ = torch.meshgrid(*(torch.arange(n) for n in assigned.shape), indexing="ij")
    positive = assigned != BACKGROUND
    which = assigned.long().clamp(min=0)
    if not boxes.shape[1]:
        return _Learnt(torch.full_like(which, background).flatten(), torch.zeros(which.numel(), 4))
    return _Learnt(
        torch.where(positive, labels[image, which], background).flatten(),
        boxes[image, which].flatten(0, 1),
    )


def _same(one: _Learnt, other: _Learnt, background: int) -> Tensor:
    same_box = (one.labels == background) | (one.boxes == other.boxes).all(1)
    return (one.labels == other.labels) & same_box


@dataclass
class _Difference:
    """How labels of this device differ from a CPU's.

    Attributes:
        priors: of all views.
        priors_differ: of them.
        objects: with candidates.
        objects_differ: those of the priors that differ.
        by_outputs: of the priors that differ, those where the rule, on the CPU, says what this
            device says once it is given this device's outputs of the network.
        largest: relative difference of a cost, of the objects that differ.
        usual: the median of that over a batch's candidates, of the batch where it is largest.
    """

    priors: int = 0
    priors_differ: int = 0
    objects: int = 0
    objects_differ: int = 0
    by_outputs: int = 0
    largest: float = 0.0
    usual: float = 0.0


def _against_cpu(store: LabelStore, split: CheckedSplit, paths: Paths) -> Figures:
    """The labels of this device's network against those of the same network on a CPU."""
    here, _ = load_teacher(paths, split)
    there, _ = load_teacher(paths, split, device="cpu")
    found = {name: _Difference() for name in _TF32}
    for _, batch, shown in _batches(store, split, there):
        for name, difference in found.items():
            with _cudnn_tf32(name):
                _add(difference, here, there, shown, run_network(here, batch))
    lines = [
        f"- {name}: {one.priors_differ} of {one.priors} priors differ, of {one.objects_differ} of "
        f"{one.objects} objects; {one.by_outputs} of these priors by the network's outputs alone. "
        f"Costs of these objects differ by up to {one.largest:.1e} of themselves, costs in all by "
        f"{one.usual:.1e} (median)"
        for name, one in found.items()
    ]
    details = {name: asdict(one) for name, one in found.items()}
    wrong = sum(one.priors_differ - one.by_outputs for one in found.values())
    return Figures(
        [],
        "labels of this device against a CPU's of the same teacher\n\n" + "\n".join(lines),
        details,
        "labels differ by more than the network's rounding" if wrong else "",
    )


_TF32 = {"TF32": True, "no TF32": False}


@contextmanager
def _cudnn_tf32(name: str) -> Iterator[None]:
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = _TF32[name]
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def _add(
    difference: _Difference, here: Teacher, there: Teacher, cpu: ForwardPass, device: ForwardPass
) -> None:
    """Compare a batch.

    Args:
        difference: what was found so far.
        here: the teacher on this device.
        there: the same on the CPU.
        cpu: what its network says there.
        device: and here.
    """
    moved = HeadOutputs(*([level.cpu() for level in maps] for maps in device.outputs))
    mine = here.assign(device.outputs, device.truth, device.grid).assigned_gt_inds.cpu()
    theirs = there.assign(cpu.outputs, cpu.truth, cpu.grid).assigned_gt_inds
    moved_labels = there.assign(moved, cpu.truth, cpu.grid).assigned_gt_inds
    differ = mine != theirs
    candidates = list_candidates(cpu.grid.priors, cpu.truth)
    costs, others = (
        candidate_costs(there.head, outputs, candidates)
        for outputs in (HeadOutputs(*cpu.outputs), moved)
    )
    relative = (costs - others).abs() / costs
    image, prior = differ.nonzero(as_tuple=True)
    room = cpu.truth.boxes.shape[1]
    groups = torch.cat([image * room + one[image, prior] for one in (mine, theirs)])[
        torch.cat([one[image, prior] for one in (mine, theirs)]) != BACKGROUND
    ].unique()
    difference.priors += differ.numel()
    difference.priors_differ += len(image)
    difference.objects += len(candidates.group.unique())
    difference.objects_differ += len(groups)
    difference.by_outputs += int((differ & (moved_labels == mine)).sum())
    if len(relative):
        difference.usual = max(difference.usual, float(relative.median()))
    of_these = relative[torch.isin(candidates.group, groups)]
    if len(of_these):
        difference.largest = max(difference.largest, float(of_these.max()))
