"""The assignment of a view from what a head returns, against mmdet's `LADHead`; how it grows."""

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import torch
from mmdet.models.dense_heads import LADHead
from mmdet.registry import MODELS

from benchmarks.measure import Figures, Ratio, alternate, medians
from benchmarks.random_teacher import (
    MODEL,
    SCALE,
    DrawnView,
    RandomTeacher,
    draw_view,
    random_objects,
)
from pipeline.heads.batch_grid import BatchGrid, ground_truth
from pipeline.heads.paa_costs import HeadOutputs
from pipeline.heads.positives import Assignment

OBJECTS = 7
"""Of a view of COCO."""
VIEWS = 8
"""Of a round: one after the other, or at once as in the teacher pass."""
SLACK = 1.1
"""Linear growth is met up to the scatter of medians."""


def mmdet_head() -> LADHead:
    """The head of mmdet for the random teacher's outputs."""
    head: LADHead = MODELS.build(
        MODEL.bbox_head | dict(type="LADHead", train_cfg=MODEL.train_cfg, test_cfg=MODEL.test_cfg)
    )
    return head


def join_outputs(views: Sequence[DrawnView]) -> HeadOutputs:
    """The head's outputs for a batch of views of one size."""
    maps = zip(*(view.outputs for view in views), strict=True)
    return HeadOutputs(*([torch.cat(level) for level in zip(*one, strict=True)] for one in maps))


def assign(teacher: RandomTeacher, views: Sequence[DrawnView], outputs: HeadOutputs) -> Assignment:
    """Our assignment of a batch of views of one size, from what the head returns.

    Args:
        teacher: decides.
        views: with the objects.
        outputs: for all of the views together.
    """
    samples = [view.sample for view in views]
    grid = BatchGrid.of(teacher.grid, samples, outputs.device)
    return teacher.assign(outputs, ground_truth(samples, outputs.device), grid)


@torch.no_grad()
def assign_mmdet(head: LADHead, views: Sequence[DrawnView], outputs: HeadOutputs) -> tuple:
    """What mmdet's online LAD computes of the same views; arguments as of `assign`."""
    samples = [view.sample for view in views]
    result: tuple = head.get_label_assignment(
        *outputs,
        [sample.gt_instances for sample in samples],
        [sample.metainfo for sample in samples],
        [sample.ignored_instances for sample in samples],
    )
    return result


def measure_assignment(
    objects: Sequence[int], sizes: Sequence[tuple[int, int]], repeats: int, threads: int
) -> Figures:
    """Time assignments of drawn views.

    Args:
        objects: how many an image has, ascending; at COCO's size.
        sizes: (width, height) of views, ascending; with COCO's 7 objects.
        repeats: rounds.
        threads: of torch, for the note.
    """
    rng = np.random.default_rng(0)
    teacher, head = RandomTeacher(seed=0), mmdet_head()

    def draw(count: int, size: tuple[int, int]) -> list[DrawnView]:
        return [draw_view(teacher, random_objects(rng, count, size), size) for _ in range(VIEWS)]

    def ours(views: list[DrawnView]) -> Callable[[int], object]:
        return lambda _: [assign(teacher, [view], view.outputs) for view in views]

    common = draw(OBJECTS, SCALE)
    outputs = join_outputs(common)
    ways: dict[str, Callable[[int], object]] = {
        "ours": ours(common),
        "mmdet": lambda _: [assign_mmdet(head, [v], v.outputs) for v in common],
        "ours, batch": lambda _: assign(teacher, common, outputs),
        "mmdet, batch": lambda _: assign_mmdet(head, common, outputs),
    }
    ways |= {f"{count} objects": ours(draw(count, SCALE)) for count in objects}
    priors = {}
    for size in sizes:
        views = draw(OBJECTS, size)
        priors[size] = views[0].grid.count
        ways[f"{priors[size]} priors"] = ours(views)
    rounds = medians(alternate(ways, repeats))
    seconds = {way: spent / VIEWS for way, spent in rounds.items()}

    def growth(unit: str, few: int, many: int) -> Ratio:
        return Ratio(
            f"assignment, {many:,} {unit}s",
            seconds[f"{many} {unit}s"] / many * 1e6,
            f"{few:,} {unit}s",
            seconds[f"{few} {unit}s"] / few * 1e6,
            f"us/{unit}",
            at_most=SLACK,
        )

    which = f"{OBJECTS} objects, {common[0].grid.count:,} priors"
    theirs = "mmdet's get_label_assignment", 1 / seconds["mmdet"], "views/s"
    ratios = [
        Ratio(f"assignment, {which}", 1 / seconds["ours"], *theirs, at_least=10),
        Ratio(
            f"the same, {VIEWS} views at once",
            1 / seconds["ours, batch"],
            theirs[0],
            1 / seconds["mmdet, batch"],
            theirs[2],
        ),
        *(growth("object", *pair) for pair in itertools.pairwise(objects)),
        *(growth("prior", priors[few], priors[many]) for few, many in itertools.pairwise(sizes)),
    ]
    note = f"outputs of the random teacher at {SCALE[0]} x {SCALE[1]}, {threads} threads"
    return Figures(ratios, note, {"seconds": seconds})
