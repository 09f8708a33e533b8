"""Checks a label store without a teacher: all is there, as it was written, and within its range.

What is read here may be damaged: it is described among `problems`, and nothing is raised.
"""

import shlex
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from pipeline.data.coco import AnnotatedImage
from pipeline.data.ground_truth import BACKGROUND
from pipeline.project.errors import UserError
from pipeline.store.coding import (
    DISTANCE_CODES,
    NEUTRAL,
    OCTAVES,
    STEPS_PER_OCTAVE,
    SoftSettings,
    encode_fraction,
)
from pipeline.store.reader import LabelStore
from pipeline.store.schema import (
    ASSIGNED_GT,
    MISSING,
    VIEW_COLUMNS,
    Shard,
    plan_store,
)
from pipeline.store.shard import CorruptShardError, ShardedRows
from pipeline.views.priors import PaddedViews, PriorGrid

Rows = dict[str, npt.NDArray]


def check_structure(
    store: LabelStore, images: Sequence[AnnotatedImage] | None, problems: list[str]
) -> dict[str, int]:
    """Read everything in a store and check it.

    Args:
        store: a whole one.
        images: those that it should be of, in file order, if they are known.
        problems: what is wrong is added here.

    Returns:
        What was checked: the number of views, buckets, shards, rows.
    """
    problems += check_table(store, images)
    crowds = {image.image_id: image.objects.crowd for image in images or ()}
    table = store.layout.table
    soft = store.soft_settings()
    rows = 0
    with tqdm(total=len(store), desc="verify", unit="view", mininterval=2) as bar:
        for shard in store.layout.shards():
            for view, found in read_rows(store, shard, problems):
                crowd = crowds.get(int(table["image_id"][view]))
                for name, what in out_of_range(found, crowd, soft):
                    problems.append(f"{store.place(name, view)}: {what}")
                rows += len(found)
            bar.update(len(shard.views))
    return {
        "views": len(store),
        "buckets": len(store.layout.buckets),
        "shards": store.layout.shard_count(),
        "rows": rows,
    }


def check_table(store: LabelStore, images: Sequence[AnnotatedImage] | None) -> Iterator[str]:
    """What is wrong with the view table and the buckets.

    Args:
        store: to check.
        images: those that it should be of, in file order, if they are known.
    """
    layout = store.layout
    table = layout.table
    priors = store.fingerprint["priors"]
    grid = PriorGrid.read(priors)
    for bucket in layout.buckets:
        if bucket.priors != grid.count(bucket.padded):
            yield (
                f"bucket {bucket.name} has {bucket.priors} priors, "
                f"expected {grid.count(bucket.padded)}"
            )
    plan = store.plan()
    ids = table["image_id"]
    if len(np.unique(ids)) * len(plan) != len(ids) or not (
        (table["view"] == np.arange(len(ids)) % len(plan)).all()
        and (ids == np.repeat(ids[:: len(plan)], len(plan))).all()
    ):
        yield f"views/: not every image has each of the {len(plan)} views once"
    for index, bucket in enumerate(layout.buckets):
        if not np.array_equal(np.sort(table["row"][table["bucket"] == index]), range(bucket.rows)):
            yield f"views/: not every row of bucket {bucket.name} is of one view"
    if images is None:
        return
    divisor = store.fingerprint["padding"]["pad_size_divisor"]
    try:
        expected = plan_store(
            images, PaddedViews(plan, grid, divisor), layout.shard_rows, layout.soft_classes
        )
    except UserError as error:
        yield str(error)
        return
    if expected.buckets != layout.buckets:
        yield f"the data set's views need the buckets {expected.buckets}, found {layout.buckets}"
    if len(expected.table["row"]) != len(ids):
        yield f"the data set has {len(expected.table['row'])} views, the store {len(ids)}"
        return
    for name in VIEW_COLUMNS:
        for view in np.flatnonzero(expected.table[name] != table[name]).tolist():
            yield (
                f"views/{name}: view {table['view'][view]} of image {ids[view]}: expected "
                f"{expected.table[name][view]} from the data set, found {table[name][view]}"
            )


def read_rows(store: LabelStore, shard: Shard, problems: list[str]) -> Iterator[tuple[int, Rows]]:
    """Every view of a shard, with those of its arrays that can be read.

    Args:
        store: to read.
        shard: one that is complete.
        problems: what can't be read is added here.
    """
    bucket = store.layout.buckets[shard.bucket]
    arrays = store.rows[shard.bucket]
    for name, array in arrays.items():
        if isinstance(array, ShardedRows):
            try:
                array.check_index(shard.number, len(shard.views))
            except CorruptShardError as error:
                problems.append(f"{name} (bucket {bucket.name}): {error}")
    for view in shard.views.tolist():
        row = int(store.layout.table["row"][view])
        found: Rows = {}
        for name, array in arrays.items():
            try:
                found[name] = array.read(row)
            except CorruptShardError as error:
                problems.append(f"{store.place(name, view)}: {error}")
        if ASSIGNED_GT in found and found[ASSIGNED_GT].min() <= MISSING:
            problems.append(f"{store.place(ASSIGNED_GT, view)}: it was never written")
        yield view, found


def linked_damage(store: LabelStore) -> Iterator[str]:
    """What to say of damaged files of a store on a local disk that are links to a cache of DVC's.

    DVC takes what is in its cache for whole: the damage would come back with the next checkout, and
    with every other project that shares the cache.

    Args:
        store: in which something can't be read.
    """
    for shard in store.layout.shards():
        for array in store.rows[shard.bucket].values():
            if not isinstance(array, ShardedRows):
                continue
            file = array.file(shard.number)
            linked = file.is_symlink() or (file.exists() and file.stat().st_nlink > 1)
            if linked and not _is_readable(array, shard, store):
                yield (
                    f"{file} is a link: what it is linked to, as DVC's cache, has the damage, too. "
                    'Remove it there, too: `find -L . "$(dvc cache dir)" '
                    f"-samefile {shlex.quote(str(file))} -delete`, and then bring it back: "
                    "`dvc pull labels`, or `lad labels` and `dvc commit labels`"
                )


def _is_readable(array: ShardedRows, shard: Shard, store: LabelStore) -> bool:
    try:
        array.check_index(shard.number, len(shard.views))
        for view in shard.views.tolist():
            array.read(int(store.layout.table["row"][view]))
    except CorruptShardError:
        return False
    return True


def out_of_range(
    found: Rows, crowd: npt.NDArray[np.bool_] | None, soft: SoftSettings | None
) -> Iterator[tuple[str, str]]:
    """Entries of a view that no teacher pass writes: the array, and what is wrong.

    Args:
        found: the view's arrays.
        crowd: for each object of the image whether it is a crowd, if that is known.
        soft: how soft scores are stored, if at all.
    """
    if ASSIGNED_GT in found and crowd is not None:
        objects = found[ASSIGNED_GT][found[ASSIGNED_GT] > BACKGROUND]
        if (objects >= len(crowd)).any():
            yield ASSIGNED_GT, f"object {objects.max()} of an image with {len(crowd)} objects"
        elif crowd[objects].any():
            yield ASSIGNED_GT, f"object {objects[crowd[objects]][0]} is a crowd"
    if soft is None:
        return
    if "cls_scores" in found and found["cls_scores"].max(initial=0) > soft.scores.levels:
        yield "cls_scores", f"code {found['cls_scores'].max()}, expected <= {soft.scores.levels}"
    means = found.get("tail_mean")
    if means is not None and not ((means >= 0) & np.isfinite(means)).all():
        yield "tail_mean", "values that are no means of probabilities"
    lowest, highest = NEUTRAL - OCTAVES * STEPS_PER_OCTAVE, NEUTRAL + OCTAVES * STEPS_PER_OCTAVE
    scales = found.get("tail_scale")
    if scales is not None and not ((scales >= lowest) & (scales <= highest)).all():
        yield "tail_scale", f"codes outside {lowest} to {highest}"
    if "distances" in found and (found["distances"] < -DISTANCE_CODES).any():
        yield "distances", f"codes under {-DISTANCE_CODES}"
    if "box_quality" not in found:
        return
    max_iou, quality = found["box_quality"]
    overlaps = max_iou != 0
    # Rounding keeps the order: no code under that of the threshold.
    if (max_iou[overlaps] < int(encode_fraction(torch.tensor(soft.min_iou)))).any():
        yield "box_quality", f"max_iou between 0 and min_iou = {soft.min_iou}"
    if quality[~overlaps].any():
        yield "box_quality", "quality that is not 0 where max_iou is 0"
    if "distances" in found and "cls_scores" in found:
        likely = found["cls_scores"].max(0, initial=0) >= soft.scores.code_of(soft.min_score)
        if found["distances"][~overlaps & ~likely].any():
            yield "distances", "a box where max_iou is 0 and no class has min_score"
