"""What a label store holds and where: the layout that writer and readers share.

labels.zarr/
  zarr.json               attributes: format version, fingerprint, shard size, buckets, digests
  shards/<H>x<W>.<number> only while it is filled: a file for each shard that is complete, in which
                          is the number of its objects whose costs allowed no mixture
  views/                  one row per view, image after image, views of the plan in order
    image_id  int64       id in the annotation file
    view      int16       index into the view plan
    bucket    int32       index into the attribute `buckets`
    row       int32       row in the bucket's arrays
    gt_digest uint64      digest of the image's objects
    long, short           int32, the scale: bounds of the sides that the image is resized to fit
    flip                  uint8, 1 where it is then, after the crop, flipped horizontally
    top, left, height, width  int32, the window of the resized image that it shows, in pixels
  buckets/<H>x<W>/
    assigned_gt int16     [rows, priors] index of the object, -1 background, -2 ignored, -3 missing
    cls_scores  uint8     [rows, classes, priors] codes of probabilities (`pipeline.store.coding`)
    tail_mean   float16   [rows, classes] what the code of the tail stands for, times
    tail_scale  uint8     [rows, runs] code of the tail's scale for each run of 4 priors
    distances   int8      [rows, priors, 4] codes of the distances of the box's sides
    box_quality uint8     [rows, 2, priors] in 1/255: the best IoU of the teacher's box with an
                          object (`max_iou`), and its IoU prediction or centerness (`quality`)
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.data.coco import MOST_OBJECTS, AnnotatedImage, objects_digest
from pipeline.project.errors import UserError
from pipeline.project.files import PARTIAL
from pipeline.store.coding import RUN
from pipeline.views.plan import Shape, of_image
from pipeline.views.priors import PaddedViews

FORMAT_VERSION = 5
MISSING = -3
"""Fill value of `assigned_gt`, outside its domain: a row that was never written."""

GEOMETRY = {
    "long": "int32",
    "short": "int32",
    "flip": "uint8",
    "top": "int32",
    "left": "int32",
    "height": "int32",
    "width": "int32",
}
"""The columns that record a view, in the order of `View.geometry`."""

VIEW_COLUMNS = {
    "image_id": "int64",
    "view": "int16",
    "bucket": "int32",
    "row": "int32",
    "gt_digest": "uint64",
    **GEOMETRY,
}

SHARD_FLAGS = "shards"
"""The folder of an unfinished store in which each complete shard has a file."""

ASSIGNED_GT = "assigned_gt"
SOFT_ARRAYS = ("cls_scores", "tail_mean", "tail_scale", "distances", "box_quality")
"""With the assignment six files a shard: what keeps and moves a store pays by the file.

`max_iou` and `quality` are 0 where the IoU is at most `labels.min_iou`; the quality also for a
teacher whose head has none. `distances` are 0 where that holds and no class has a probability of
`labels.min_score`, too: no box is stored there.
"""


def unfinished(path: Path) -> Path:
    """Where a store lies while it is filled.

    Args:
        path: where it lies once it is whole.
    """
    return path.with_name(path.name + PARTIAL)


@dataclass(frozen=True)
class RowArray:
    """An array with one chunk a row.

    Attributes:
        dtype: of its entries.
        row: shape of a row.
        fill: what a row holds that was never written.
    """

    dtype: str
    row: tuple[int, ...]
    fill: int


@dataclass(frozen=True)
class Bucket:
    """All views with the same padded size.

    Attributes:
        padded: (height, width) in pixels.
        rows: number of views.
        priors: number of priors of each view.
    """

    padded: Shape
    rows: int
    priors: int

    @property
    def name(self) -> str:
        """`<H>x<W>`, the bucket's group in the store."""
        return f"{self.padded[0]}x{self.padded[1]}"

    def shards(self, shard_rows: int) -> int:
        """The number of shards that hold the bucket's rows."""
        return -(-self.rows // shard_rows)

    def arrays(self, soft_classes: int) -> dict[str, RowArray]:
        """The bucket's arrays by name; those of soft scores only where there are any.

        Args:
            soft_classes: number of classes that have scores, 0 for a store without.
        """
        arrays = {ASSIGNED_GT: RowArray("int16", (self.priors,), MISSING)}
        if soft_classes:
            arrays |= {
                "cls_scores": RowArray("uint8", (soft_classes, self.priors), 255),
                "tail_mean": RowArray("float16", (soft_classes,), -1),
                "tail_scale": RowArray("uint8", (-(-self.priors // RUN),), 0),
                "distances": RowArray("int8", (self.priors, 4), -128),
                "box_quality": RowArray("uint8", (2, self.priors), 0),
            }
        return arrays


@dataclass(frozen=True)
class Shard:
    """The unit of work: consecutive rows of one bucket.

    Attributes:
        bucket: index of the bucket.
        number: which shard of the bucket.
        views: (n,) places of its rows in the view table, in row order.
    """

    bucket: int
    number: int
    views: npt.NDArray[np.int64]


@dataclass(frozen=True)
class StoreLayout:
    """Which view lies where.

    Attributes:
        buckets: in order of height and width.
        table: the columns of `views/` by name, each (V,).
        shard_rows: rows in a shard.
        soft_classes: number of classes that have soft scores, 0 for a store without.
    """

    buckets: tuple[Bucket, ...]
    table: dict[str, npt.NDArray]
    shard_rows: int
    soft_classes: int

    def rows_in_shard(self, bucket: Bucket) -> int:
        """The rows in a full shard of a bucket: no more than the bucket has."""
        return min(self.shard_rows, bucket.rows)

    def shard_count(self) -> int:
        """The number of all shards."""
        return sum(bucket.shards(self.shard_rows) for bucket in self.buckets)

    def shard_name(self, shard: Shard) -> str:
        """`<H>x<W>.<number>`."""
        return f"{self.buckets[shard.bucket].name}.{shard.number}"

    def shards(self) -> Iterator[Shard]:
        """All shards, bucket after bucket."""
        for index, bucket in enumerate(self.buckets):
            views = np.flatnonzero(self.table["bucket"] == index)
            for number in range(bucket.shards(self.shard_rows)):
                start = number * self.shard_rows
                yield Shard(index, number, views[start : start + self.shard_rows])


def plan_store(
    images: Sequence[AnnotatedImage], views: PaddedViews, shard_rows: int, soft_classes: int
) -> StoreLayout:
    """Sort every view of every image into buckets and rows.

    Args:
        images: in file order.
        views: of every image, with the priors of teacher and students.
        shard_rows: rows in a shard.
        soft_classes: number of classes that have soft scores, 0 for a store without.

    Raises:
        UserError: an image has more objects than int16 can count.
    """
    for image in images:
        if len(image.objects.boxes) > MOST_OBJECTS:
            raise UserError(
                f"image {image.image_id} has {len(image.objects.boxes)} objects; "
                f"a store can hold at most {MOST_OBJECTS} an image"
            )
    plan = views.plan
    padded: list[Shape] = []
    geometry: list[tuple[int, ...]] = []
    for image in images:
        size = image.height, image.width
        with of_image(image.file_name):
            for number in range(len(plan)):
                view = plan.view(number, image.image_id, *size)
                padded.append(views.padded(view, *size))
                geometry.append(view.geometry(*size))
    shapes = sorted(set(padded))
    index = {shape: number for number, shape in enumerate(shapes)}
    bucket = np.array([index[shape] for shape in padded], np.int32)
    row = np.empty(len(padded), np.int32)
    for number in range(len(shapes)):
        members = np.flatnonzero(bucket == number)
        row[members] = np.arange(len(members))
    table = {
        "image_id": np.repeat([image.image_id for image in images], len(plan)),
        "view": np.tile(np.arange(len(plan)), len(images)),
        "bucket": bucket,
        "row": row,
        "gt_digest": np.repeat(
            np.array([objects_digest(image.objects) for image in images], np.uint64), len(plan)
        ),
        **dict(zip(GEOMETRY, np.array(geometry).T, strict=True)),
    }
    counts = np.bincount(bucket, minlength=len(shapes))
    return StoreLayout(
        buckets=tuple(
            Bucket(shape, int(count), views.grid.count(shape))
            for shape, count in zip(shapes, counts, strict=True)
        ),
        table={name: table[name].astype(dtype) for name, dtype in VIEW_COLUMNS.items()},
        shard_rows=shard_rows,
        soft_classes=soft_classes,
    )
