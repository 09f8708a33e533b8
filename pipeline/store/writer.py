"""Writing a label store, shard by shard."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import BytesCodec, ZstdCodec

from pipeline.store.fingerprint import Fingerprint, digest
from pipeline.store.schema import FORMAT_VERSION, MISSING, Shard, StoreLayout

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

    @classmethod
    def create(cls, path: Path, layout: StoreLayout, fingerprint: Fingerprint) -> "StoreWriter":
        """Make an empty store; it appears under `path` only when it is whole."""
        building = path.with_name(path.name + ".partial")
        shutil.rmtree(building, ignore_errors=True)
        building.parent.mkdir(parents=True, exist_ok=True)
        group = zarr.open_group(building, mode="w", zarr_format=3)
        group.attrs.update(_attributes(layout, fingerprint))
        views = group.create_group("views")
        for name, column in layout.table.items():
            array = views.create_array(
                name, shape=column.shape, dtype=column.dtype, chunks=(1 << 16,),
                compressors=COMPRESSION, fill_value=0, config={"write_empty_chunks": True},
            )  # fmt: skip
            array[:] = column
        buckets = group.create_group("buckets")
        for bucket in layout.buckets:
            place = buckets.create_group(bucket.name)
            place.create_array(
                "assigned_gt",
                shape=(bucket.rows, bucket.priors),
                dtype="int16",
                chunks=(1, bucket.priors),
                shards=(layout.shard_rows, bucket.priors),
                serializer=BytesCodec(endian="little"),
                compressors=COMPRESSION,
                fill_value=MISSING,
            )
            place.create_array(
                "complete",
                shape=(bucket.shards(layout.shard_rows),),
                dtype="uint8",
                chunks=(1,),
                compressors=COMPRESSION,
                fill_value=0,
            )
        building.rename(path)
        return cls(path, layout)

    def _array(self, shard: Shard, name: str) -> zarr.Array[Any]:
        array = self.group[f"buckets/{self.layout.buckets[shard.bucket].name}/{name}"]
        assert isinstance(array, zarr.Array)
        return array

    def pending(self) -> Iterator[Shard]:
        """The shards that are not complete."""
        for shard in self.layout.shards():
            if not self._array(shard, "complete")[shard.number]:
                yield shard

    def write(self, shard: Shard, assigned: npt.NDArray[np.int16]) -> None:
        """Write a shard and flag it complete.

        Args:
            shard: which rows.
            assigned: (n, P) index of the object of each prior, or `BACKGROUND`.
        """
        array = self._array(shard, "assigned_gt")
        # zarr reads the shard that is there before it writes; a torn one would raise.
        torn = self.path / array.path / "c" / str(shard.number) / "0"
        torn.unlink(missing_ok=True)
        start = shard.number * self.layout.shard_rows
        array[start : start + len(assigned)] = assigned
        self._array(shard, "complete")[shard.number] = 1


def _attributes(layout: StoreLayout, fingerprint: Fingerprint) -> dict[str, Any]:
    attributes = {
        "format_version": FORMAT_VERSION,
        "fingerprint": fingerprint,
        "digest": digest(fingerprint),
        "shard_rows": layout.shard_rows,
        "buckets": [
            {"padded": list(b.padded), "rows": b.rows, "priors": b.priors} for b in layout.buckets
        ],
    }
    return json.loads(json.dumps(attributes))  # type: ignore[no-any-return]
