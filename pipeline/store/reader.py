"""Reading a label store."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from zarr.errors import GroupNotFoundError

from pipeline.errors import UserError
from pipeline.store.fingerprint import Fingerprint, differences
from pipeline.store.schema import (
    FORMAT_VERSION,
    MISSING,
    VIEW_COLUMNS,
    Bucket,
    StoreLayout,
)
from pipeline.store.shard import CorruptShardError, ShardedRows


class LabelStore:
    """The assignments of all views, read view by view; picklable, safe after fork.

    A view is named by its place in the view table: `image * len(plan) + view`, with images in
    the order of the annotation file.
    """

    def __init__(self, path: Path) -> None:
        """Open a store.

        Raises:
            UserError: there is no store, or it is of a format version unknown here.
        """
        self.path = path
        try:
            group = zarr.open_group(path, mode="r")
        except (FileNotFoundError, GroupNotFoundError):
            raise UserError(f"there is no label store at {path}; run `lad labels`") from None
        attributes: dict[str, Any] = dict(group.attrs)
        version = attributes.get("format_version")
        if version != FORMAT_VERSION:
            raise UserError(
                f"the store {path} has format version {version}, expected {FORMAT_VERSION}; "
                "make it again with `lad labels --replace`"
            )
        self.fingerprint: Fingerprint = attributes["fingerprint"]
        self.layout = StoreLayout(
            buckets=tuple(
                Bucket(tuple(b["padded"]), b["rows"], b["priors"]) for b in attributes["buckets"]
            ),
            table={name: np.asarray(group[f"views/{name}"]) for name in VIEW_COLUMNS},
            shard_rows=attributes["shard_rows"],
        )
        self._complete = [
            np.asarray(group[f"buckets/{bucket.name}/complete"]) for bucket in self.layout.buckets
        ]
        self._assigned = [
            ShardedRows(
                path / "buckets" / bucket.name / "assigned_gt",
                self.layout.shard_rows,
                bucket.priors,
                "int16",
            )
            for bucket in self.layout.buckets
        ]

    def missing_shards(self) -> int:
        """The number of shards that are not complete."""
        return sum(int((flags != 1).sum()) for flags in self._complete)

    def require_complete(self) -> None:
        """Refuse a store that a teacher pass has not finished.

        Raises:
            UserError: a shard is not complete.
        """
        missing = self.missing_shards()
        if missing:
            total = sum(len(flags) for flags in self._complete)
            raise UserError(
                f"the store {self.path} lacks {missing} of {total} shards; "
                "run `lad labels` to continue it"
            )

    def require(self, expected: Fingerprint, who: str) -> None:
        """Refuse a store that was made for something else.

        Args:
            expected: the parts of the fingerprint that matter to the reader.
            who: the reader, for the error.

        Raises:
            UserError: a part differs; the message lists the fields.
        """
        found = {part: self.fingerprint.get(part) for part in expected}
        lines = differences(expected, found)
        if lines:
            raise UserError(
                f"the store {self.path} does not fit {who}:\n  "
                + "\n  ".join(lines)
                + "\nmake a new store with `lad labels --replace`, or undo the change"
            )

    def padded(self, view: int) -> tuple[int, int]:
        """The padded (height, width) of a view, in pixels."""
        return self.layout.buckets[self.layout.table["bucket"][view]].padded

    def gt_digest(self, view: int) -> int:
        """The digest of the objects that the view's assignment refers to."""
        return int(self.layout.table["gt_digest"][view])

    def assigned(self, view: int) -> npt.NDArray[np.int16]:
        """For each prior of the view the index of its object, or `BACKGROUND`; (P,).

        Raises:
            UserError: the row is damaged or was never written.
        """
        bucket = self.layout.table["bucket"][view]
        try:
            values = self._assigned[bucket].read(int(self.layout.table["row"][view]))
        except CorruptShardError as error:
            raise UserError(self._damaged("assigned_gt", view, str(error))) from None
        if values.min() <= MISSING:
            raise UserError(self._damaged("assigned_gt", view, "it was never written"))
        return values

    def _damaged(self, array: str, view: int, what: str) -> str:
        table = self.layout.table
        return (
            f"the store {self.path} is damaged: {array} of view {table['view'][view]} of image "
            f"{table['image_id'][view]} (bucket {self.layout.buckets[table['bucket'][view]].name}):"
            f" {what}; make it again with `lad labels --replace`"
        )
