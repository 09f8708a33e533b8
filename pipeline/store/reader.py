"""Reading a label store."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import numpy.typing as npt
import zarr

from pipeline.project.digests import differences, digest
from pipeline.project.errors import UserError
from pipeline.store.coding import SoftSettings
from pipeline.store.fingerprint import (
    Fingerprint,
    column_digests,
    metadata_digests,
)
from pipeline.store.schema import (
    ASSIGNED_GT,
    FORMAT_VERSION,
    GEOMETRY,
    MISSING,
    SHARD_FLAGS,
    SOFT_ARRAYS,
    VIEW_COLUMNS,
    Bucket,
    Shard,
    StoreLayout,
    unfinished,
)
from pipeline.store.shard import CorruptShardError, ShardedRows, StoreFolder, ZarrRows, read_flag
from pipeline.store.soft_scores import SoftScores
from pipeline.views.plan import ViewPlan, read_plan

AGAIN = "make it again with `lad labels --replace`"
MEND = "`lad labels` makes what is damaged again"


def no_store(path: Path | str) -> UserError:
    """What to say where a store is missing.

    Args:
        path: where it should be, a folder or a URL.
    """
    if "://" not in str(path) and unfinished(Path(path)).exists():
        return UserError(f"the label store {path} is not finished; `lad labels` continues it")
    return UserError(f"there is no label store at {path}; run `lad labels`")


class LabelStore:
    """The labels of all views, read view by view; picklable, safe after fork.

    A view is named by its place in the view table: `image * len(plan) + view`, with images in
    the order of the annotation file.

    Attributes:
        path: a folder, or a URL.
        fingerprint: everything that the labels depend on.
        fingerprint_digest: of the fingerprint as it was written; reports name their store by it.
        made_with: what else is known of the run that began it: code, versions, batch sizes.
        layout: which view lies where.
        coding: of class probabilities, None in a store without soft scores.
        finished: whether the teacher pass that fills it came to its end.
        rows: for each bucket its arrays by name.
    """

    def __init__(self, path: Path | str) -> None:
        """Open a store.

        Args:
            path: a folder, or a URL that fsspec knows (`s3://...`), read through zarr-python.

        Raises:
            UserError: there is no store, it is of a format version unknown here, or what
                describes it is damaged.
        """
        self.remote = "://" in str(path)
        self.path = path if self.remote else Path(path)
        try:
            # Before anything is read of it.
            self._folder = None if self.remote else StoreFolder(Path(path))
            group = zarr.open_group(str(path), mode="r", zarr_format=3)
            attributes: dict[str, Any] = dict(group.attrs)
        except FileNotFoundError:
            if not self.remote and Path(path).exists():
                raise UserError(
                    f"{path} is no label store (it has no zarr.json); {AGAIN}"
                ) from None
            raise no_store(path) from None
        except Exception as error:  # a damaged zarr.json makes zarr raise anything
            raise UserError(f"the store {path} is damaged: zarr.json: {error}; {AGAIN}") from None
        version = attributes.get("format_version")
        if version != FORMAT_VERSION:
            raise UserError(
                f"the store {path} has format version {version}, expected {FORMAT_VERSION}; {AGAIN}"
            )
        self._check_metadata(attributes)
        self.fingerprint: Fingerprint = attributes["fingerprint"]
        self.made_with: dict[str, Any] = attributes["made_with"]
        self.fingerprint_digest = digest(attributes["fingerprint"])
        try:
            soft = self.soft_settings()
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"the store {path} has an unknown coding: {error}; {AGAIN}") from None
        self.coding = soft.scores if soft else None
        buckets = tuple(
            Bucket(tuple(b["padded"]), b["rows"], b["priors"]) for b in attributes["buckets"]
        )
        self.layout = StoreLayout(
            buckets=buckets,
            table={name: self._whole(group, f"views/{name}") for name in VIEW_COLUMNS},
            shard_rows=attributes["shard_rows"],
            soft_classes=attributes["soft_classes"],
        )
        self._check("views/", attributes["table"], column_digests(self.layout.table))
        self.finished: bool = attributes["finished"]
        self._fallbacks: int = attributes["fallbacks"]
        self._complete: list[Shard] = []
        for shard in self.layout.shards():
            flag = 0 if self.finished else self._flag(shard)
            if flag is not None:
                self._complete.append(shard)
                self._fallbacks += flag
        self.rows = [
            {
                name: self._open_rows(group, bucket, name)
                for name in bucket.arrays(self.layout.soft_classes)
            }
            for bucket in buckets
        ]

    def _check_metadata(self, attributes: dict[str, Any]) -> None:
        described = {key: value for key, value in attributes.items() if key != "digest"}
        if attributes.get("digest") != digest(described):
            raise UserError(
                f"the store {self.path} is damaged: the attributes in zarr.json are not those "
                f"that were written; {AGAIN}"
            )
        try:
            if self.remote:
                files = fsspec.get_mapper(str(self.path)).getitems(list(attributes["metadata"]))
                found = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
            else:
                found = metadata_digests(Path(self.path))
        except Exception as error:  # file systems raise anything
            raise UserError(
                f"the metadata of the store {self.path} can't be read: {error}"
            ) from None
        self._check("", attributes["metadata"], found)

    def _check(self, place: str, expected: dict[str, str], found: dict[str, str]) -> None:
        wrong = [line.partition(":")[0] for line in differences(expected, found)]
        if wrong:
            names = ", ".join(place + name for name in wrong)
            raise UserError(
                f"the store {self.path} is damaged: not what was written: {names}; {AGAIN}"
            )

    def _whole(self, group: zarr.Group, name: str) -> npt.NDArray:
        try:
            return np.asarray(group[name])
        except Exception as error:  # codecs and file systems raise anything
            raise UserError(f"the store {self.path} is damaged: {name}: {error}; {AGAIN}") from None

    def _flag(self, shard: Shard) -> int | None:
        # Who reads a store through a URL reads a whole one.
        if self.remote:
            return None
        return read_flag(Path(self.path) / SHARD_FLAGS / self.layout.shard_name(shard))

    def _open_rows(self, group: zarr.Group, bucket: Bucket, name: str) -> ShardedRows | ZarrRows:
        place = f"buckets/{bucket.name}/{name}"
        if self.remote:
            array = group[place]
            assert isinstance(array, zarr.Array)
            return ZarrRows(array)
        assert self._folder
        spec = bucket.arrays(self.layout.soft_classes)[name]
        rows = self.layout.rows_in_shard(bucket)
        return ShardedRows(self._folder, place, rows, spec.row, spec.dtype)

    def __len__(self) -> int:
        return len(self.layout.table["row"])

    def plan(self) -> ViewPlan:
        """The view plan."""
        return read_plan(self.fingerprint["views"])

    def soft_settings(self) -> SoftSettings | None:
        """How soft scores are stored; None in a store without."""
        coding = self.fingerprint["coding"]
        return SoftSettings.model_validate(coding) if coding else None

    def fallbacks(self) -> int:
        """How many objects, over all views, had costs that allow no mixture."""
        return self._fallbacks

    def complete_shards(self) -> Sequence[Shard]:
        """The shards that are complete, bucket after bucket."""
        return self._complete

    def missing_shards(self) -> int:
        """The number of shards that are not complete."""
        return self.layout.shard_count() - len(self._complete)

    def require_complete(self) -> None:
        """Refuse a store that a teacher pass has not finished.

        Raises:
            UserError: a shard is not complete.
        """
        missing = self.missing_shards()
        if missing:
            raise UserError(
                f"the store {self.path} lacks {missing} of {self.layout.shard_count()} shards; "
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

    def geometry(self, view: int) -> tuple[int, ...]:
        """What is recorded of the view; see `View.geometry`."""
        return tuple(int(self.layout.table[name][view]) for name in GEOMETRY)

    def assigned(self, view: int) -> npt.NDArray[np.int16]:
        """For each prior of the view the index of its object, `BACKGROUND` or `IGNORED`; (P,).

        Raises:
            UserError: the row is damaged or was never written.
        """
        values = self._read(ASSIGNED_GT, view)
        if values.min() <= MISSING:
            raise UserError(self._damaged(ASSIGNED_GT, view, "it was never written"))
        return values

    def soft(self, view: int) -> SoftScores:
        """The soft scores of the view.

        Raises:
            UserError: the store has none, or a row is damaged or was never written.
        """
        if not self.layout.soft_classes:
            raise UserError(
                f"the store {self.path} holds no soft scores; set labels.soft: true and "
                "run `lad labels --replace`"
            )
        codes, mean, scale, distances, (max_iou, quality) = (
            self._read(name, view) for name in SOFT_ARRAYS
        )
        return SoftScores(codes, mean, scale, max_iou, distances, quality)

    def _read(self, name: str, view: int) -> npt.NDArray:
        table = self.layout.table
        try:
            return self.rows[table["bucket"][view]][name].read(int(table["row"][view]))
        except CorruptShardError as error:
            raise UserError(self._damaged(name, view, str(error))) from None

    def _damaged(self, array: str, view: int, what: str) -> str:
        return f"the store {self.path} is damaged: {self.place(array, view)}: {what}; {MEND}"

    def place(self, array: str, view: int) -> str:
        """Names an array of a view in a message."""
        table = self.layout.table
        bucket = self.layout.buckets[table["bucket"][view]]
        return (
            f"{array} of view {table['view'][view]} of image {table['image_id'][view]} "
            f"(bucket {bucket.name})"
        )
