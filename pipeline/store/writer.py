"""Writing a label store, shard by shard.

What is on the disk after a power failure is what was synced, and in no other order: so the bytes
of a shard are synced before the flag that says that they are there.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy.typing as npt
import zarr
from zarr.codecs import BytesCodec, ZstdCodec

from pipeline.project.digests import digest
from pipeline.project.files import PARTIAL, remove_folder, wait_for_disk, whole_folder, write_whole
from pipeline.store.fingerprint import Fingerprint, column_digests, metadata_digests
from pipeline.store.schema import FORMAT_VERSION, SHARD_NUMBERS, Bucket, Shard, StoreLayout
from pipeline.store.shard import (
    COMPRESSION_LEVEL,
    CorruptShardError,
    encode_shard,
    read_number,
)

COMPRESSION = ZstdCodec(level=COMPRESSION_LEVEL, checksum=True)


class StoreWriter:
    """Fills a store; a shard counts only once its completion flag is set, which comes last.

    Shards may be written in any order and again, and several writers may share a store if each
    shard has one.
    """

    def __init__(self, path: Path, layout: StoreLayout) -> None:
        """Open a store that `create` has made."""
        self.path = path
        self.layout = layout
        self.group = zarr.open_group(path, mode="r+")

    @classmethod
    def create(
        cls,
        path: Path,
        layout: StoreLayout,
        fingerprint: Fingerprint,
        made_with: dict[str, Any] | None = None,
    ) -> "StoreWriter":
        """Make an empty store; it appears under `path` only when it is whole.

        Args:
            path: where there is nothing yet.
            layout: which view lies where.
            fingerprint: everything that the labels depend on.
            made_with: what else is worth knowing about the run, as plain values.
        """
        with whole_folder(path) as building:
            group = zarr.open_group(building, mode="w", zarr_format=3)
            with zarr.config.set({"array.write_empty_chunks": True}):
                _create_table(group.create_group("views"), layout)
                buckets = group.create_group("buckets")
                for bucket in layout.buckets:
                    _create_bucket(buckets.create_group(bucket.name), bucket, layout)
            group.attrs.update(_attributes(building, layout, fingerprint, made_with or {}))
            for file in (building, *building.rglob("*")):
                wait_for_disk(file)
        wait_for_disk(path.parent)
        return cls(path, layout)

    def remove_left_overs(self) -> None:
        """Remove what was being written when a run was killed; nobody else may be writing."""
        for left_over in self.path.rglob(f"*{PARTIAL}"):
            left_over.unlink()

    def is_complete(self, shard: Shard) -> bool:
        """Whether a shard was written; a flag that can't be read is not set."""
        try:
            return read_number(self._folder(shard, "complete"), shard.number, "uint8") == 1
        except CorruptShardError:
            return False

    def pending(self) -> Iterator[Shard]:
        """The shards that are not complete."""
        return (shard for shard in self.layout.shards() if not self.is_complete(shard))

    def write(self, shard: Shard, rows: dict[str, npt.NDArray], fallbacks: int = 0) -> None:
        """Write a shard, wait until it is on the disk, and flag it complete.

        Args:
            shard: which rows.
            rows: what to write by array name, each (n, ...); see `pipeline.store.schema`.
            fallbacks: how many of their objects had costs that allow no mixture.

        Raises:
            OSError: the disk is full, or fails; the shard then does not count as complete.
        """
        bucket = self.layout.buckets[shard.bucket]
        expected = bucket.arrays(self.layout.soft_classes)
        assert rows.keys() == expected.keys(), (rows.keys(), expected.keys())
        for name, values in rows.items():
            assert values.shape == (len(shard.views), *expected[name].row), name
            values = values.astype(expected[name].dtype, copy=False)
            places = [str(shard.number), *["0"] * len(expected[name].row)]
            file = self._folder(shard, name).joinpath("c", *places)
            # A shard that is written a second time is never seen half.
            write_whole(file, encode_shard(values, self.layout.shard_rows), wait=True)
            # The folders between the array's and the file may be new.
            for folder in file.parents[: len(places) + 1]:
                wait_for_disk(folder)
        self._set(shard, "fallbacks", fallbacks)
        self._set(shard, "complete", 1)

    def retract(self, shard: Shard) -> None:
        """Take back that a shard is complete, before it is written again."""
        self._set(shard, "complete", 0)

    def _set(self, shard: Shard, name: str, number: int) -> None:
        with zarr.config.set({"array.write_empty_chunks": True}):
            self._array(shard, name)[shard.number] = number
        folder = self._folder(shard, name) / "c"
        for written in (folder / str(shard.number), folder):
            wait_for_disk(written)

    def _name(self, shard: Shard, name: str) -> str:
        return f"buckets/{self.layout.buckets[shard.bucket].name}/{name}"

    def _folder(self, shard: Shard, name: str) -> Path:
        return self.path / self._name(shard, name)

    def _array(self, shard: Shard, name: str) -> zarr.Array[Any]:
        array = self.group[self._name(shard, name)]
        assert isinstance(array, zarr.Array)
        return array


def _create_table(views: zarr.Group, layout: StoreLayout) -> None:
    for name, column in layout.table.items():
        array = views.create_array(
            name,
            shape=column.shape,
            dtype=column.dtype,
            chunks=(1 << 16,),
            compressors=COMPRESSION,
            fill_value=0,
        )
        array[:] = column


def _create_bucket(group: zarr.Group, bucket: Bucket, layout: StoreLayout) -> None:
    for name, spec in bucket.arrays(layout.soft_classes).items():
        group.create_array(
            name,
            shape=(bucket.rows, *spec.row),
            dtype=spec.dtype,
            chunks=(1, *spec.row),
            shards=(layout.shard_rows, *spec.row),
            serializer=BytesCodec(endian=None if spec.dtype == "uint8" else "little"),
            compressors=COMPRESSION,
            fill_value=spec.fill,
        )
    for name, dtype in SHARD_NUMBERS.items():
        numbers = group.create_array(
            name,
            shape=(bucket.shards(layout.shard_rows),),
            dtype=dtype,
            chunks=(1,),
            compressors=COMPRESSION,
            fill_value=0,
        )
        numbers[:] = 0


def remove_store(path: Path) -> None:
    """Remove a store such that no kill leaves half of it under its name."""
    remove_folder(path)
    wait_for_disk(path.parent)


def _attributes(
    path: Path, layout: StoreLayout, fingerprint: Fingerprint, made_with: dict[str, Any]
) -> dict[str, Any]:
    attributes = {
        "format_version": FORMAT_VERSION,
        "fingerprint": fingerprint,
        "made_with": made_with,
        "shard_rows": layout.shard_rows,
        "soft_classes": layout.soft_classes,
        "buckets": [
            {"padded": list(b.padded), "rows": b.rows, "priors": b.priors} for b in layout.buckets
        ],
        "table": column_digests(layout.table),
        "metadata": metadata_digests(path),
    }
    attributes = json.loads(json.dumps(attributes))
    return attributes | {"digest": digest(attributes)}
