"""Writing a label store, shard by shard."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy.typing as npt
import zarr
from zarr.codecs import BytesCodec, ZstdCodec

from pipeline.store.fingerprint import Fingerprint, digest, metadata_digests
from pipeline.store.schema import FORMAT_VERSION, Shard, StoreLayout

COMPRESSION = ZstdCodec(level=3, checksum=True)


class StoreWriter:
    """Fills a store; a shard counts only once its completion flag is set, which comes last.

    One writer owns the whole store at a time. Shards may be written in any order and again.
    """

    def __init__(self, path: Path, layout: StoreLayout) -> None:
        """Open a store that `create` has made."""
        self.path = path
        self.layout = layout
        self.group = zarr.open_group(path, mode="r+")
        # What zarr was writing when a run was killed.
        for left_over in path.rglob("*.partial"):
            left_over.unlink()

    @classmethod
    def create(cls, path: Path, layout: StoreLayout, fingerprint: Fingerprint) -> "StoreWriter":
        """Make an empty store; it appears under `path` only when it is whole."""
        building = path.with_name(path.name + ".partial")
        shutil.rmtree(building, ignore_errors=True)
        building.parent.mkdir(parents=True, exist_ok=True)
        group = zarr.open_group(building, mode="w", zarr_format=3)
        with zarr.config.set({"array.write_empty_chunks": True}):
            views = group.create_group("views")
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
            buckets = group.create_group("buckets")
            for bucket in layout.buckets:
                place = buckets.create_group(bucket.name)
                for name, spec in bucket.arrays(layout.soft_classes).items():
                    place.create_array(
                        name,
                        shape=(bucket.rows, *spec.row),
                        dtype=spec.dtype,
                        chunks=(1, *spec.row),
                        shards=(layout.shard_rows, *spec.row),
                        serializer=BytesCodec(endian=None if spec.dtype == "uint8" else "little"),
                        compressors=COMPRESSION,
                        fill_value=spec.fill,
                    )
                complete = place.create_array(
                    "complete",
                    shape=(bucket.shards(layout.shard_rows),),
                    dtype="uint8",
                    chunks=(1,),
                    compressors=COMPRESSION,
                    fill_value=0,
                )
                complete[:] = 0
        group.attrs.update(_attributes(building, layout, fingerprint))
        for file in (building, *building.rglob("*")):
            _sync(file)
        building.rename(path)
        _sync(path.parent)
        return cls(path, layout)

    def _array(self, shard: Shard, name: str) -> zarr.Array[Any]:
        array = self.group[f"buckets/{self.layout.buckets[shard.bucket].name}/{name}"]
        assert isinstance(array, zarr.Array)
        return array

    def pending(self) -> Iterator[Shard]:
        """The shards that are not complete."""
        flags = [
            self.group[f"buckets/{bucket.name}/complete"][:]  # type: ignore[index]
            for bucket in self.layout.buckets
        ]
        for shard in self.layout.shards():
            if flags[shard.bucket][shard.number] != 1:  # type: ignore[index]
                yield shard

    def write(self, shard: Shard, rows: dict[str, npt.NDArray]) -> None:
        """Write a shard, wait until it is on the disk, and flag it complete.

        Args:
            shard: which rows.
            rows: what to write by array name, each (n, ...); see `pipeline.store.schema`.
        """
        bucket = self.layout.buckets[shard.bucket]
        expected = bucket.arrays(self.layout.soft_classes)
        assert rows.keys() == expected.keys(), (rows.keys(), expected.keys())
        start = shard.number * self.layout.shard_rows
        with zarr.config.set({"array.write_empty_chunks": True}):
            for name, values in rows.items():
                assert values.shape == (len(shard.views), *expected[name].row), name
                array = self._array(shard, name)
                folder = self.path / array.path / "c" / str(shard.number)
                file = folder.joinpath(*["0"] * len(expected[name].row))
                # zarr reads the shard that is there before it writes; a torn one would raise.
                file.unlink(missing_ok=True)
                array[start : start + len(values)] = values
                for written in (file, *file.parents[: len(expected[name].row) + 1]):
                    _sync(written)
            complete = self._array(shard, "complete")
            complete[shard.number] = 1
        flag = self.path / complete.path / "c" / str(shard.number)
        for written in (flag, flag.parent):
            _sync(written)


def _attributes(path: Path, layout: StoreLayout, fingerprint: Fingerprint) -> dict[str, Any]:
    attributes = {
        "format_version": FORMAT_VERSION,
        "fingerprint": fingerprint,
        "shard_rows": layout.shard_rows,
        "soft_classes": layout.soft_classes,
        "buckets": [
            {"padded": list(b.padded), "rows": b.rows, "priors": b.priors} for b in layout.buckets
        ],
        "metadata": metadata_digests(path),
    }
    attributes = json.loads(json.dumps(attributes))
    return attributes | {"digest": digest(attributes)}


def _sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
