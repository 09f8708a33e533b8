"""Writing a label store, shard by shard.

While it is filled it lies beside its name, and in its folder `shards` is a file for each shard that
is complete. The last step takes that folder away and gives the store its name.

What is on the disk after a power failure is what was synced, and in no other order: so the bytes
of a shard are synced before the file that says that they are there.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt
import zarr
from zarr.codecs import BytesCodec, ZstdCodec

from pipeline.project.digests import digest
from pipeline.project.files import (
    PARTIAL,
    REMOVED,
    remove_folder,
    wait_for_disk,
    whole_folder,
    write_whole,
)
from pipeline.store.fingerprint import Fingerprint, column_digests, metadata_digests
from pipeline.store.schema import FORMAT_VERSION, SHARD_FLAGS, Bucket, Shard, StoreLayout
from pipeline.store.shard import COMPRESSION_LEVEL, encode_rows, join_rows, read_flag

COMPRESSION = ZstdCodec(level=COMPRESSION_LEVEL, checksum=True)

LINKS = ".links"
"""The end of the name of a folder of hard links that is being made."""

Chunks = dict[str, list[bytes]]
"""Rows of a shard by array name, each compressed."""


class StoreWriter:
    """Fills a store; a shard counts only once it is flagged complete, which comes last.

    Shards may be written in any order and again, and several writers may share a store if each
    shard has one.
    """

    def __init__(self, path: Path, layout: StoreLayout) -> None:
        """Open a store that `create` has made, or one that is whole, to mend it."""
        self.path = path
        self.layout = layout

    @classmethod
    def create(
        cls,
        path: Path,
        layout: StoreLayout,
        fingerprint: Fingerprint,
        made_with: dict[str, Any] | None = None,
    ) -> "StoreWriter":
        """Make an empty store; it appears under `path` only when all that describes it is there.

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
            (building / SHARD_FLAGS).mkdir()
            for file in (building, *building.rglob("*")):
                wait_for_disk(file)
        wait_for_disk(path.parent)
        return cls(path, layout)

    def remove_left_overs(self) -> None:
        """Remove what was being written when a run was killed; nobody else may be writing."""
        for left_over in self.path.rglob(f"*{PARTIAL}"):
            left_over.unlink()

    def is_complete(self, shard: Shard) -> bool:
        """Whether a shard is flagged complete; a flag that can't be read is none."""
        return read_flag(self._flag(shard)) is not None

    def pending(self) -> Iterator[Shard]:
        """The shards that are not flagged complete."""
        return (shard for shard in self.layout.shards() if not self.is_complete(shard))

    def encode(self, shard: Shard, rows: Mapping[str, npt.NDArray]) -> Chunks:
        """Compress some rows of a shard, so that a whole one fits into memory.

        Args:
            shard: which.
            rows: by array name, each (n, ...); see `pipeline.store.schema`.
        """
        expected = self.layout.buckets[shard.bucket].arrays(self.layout.soft_classes)
        assert rows.keys() == expected.keys(), (rows.keys(), expected.keys())
        for name, values in rows.items():
            assert values.shape[1:] == expected[name].row, name
        return {
            name: encode_rows(values.astype(expected[name].dtype, copy=False))
            for name, values in rows.items()
        }

    def write(
        self, shard: Shard, chunks: Mapping[str, Sequence[bytes]], fallbacks: int = 0
    ) -> None:
        """Write a shard, wait until it is on the disk, and flag it complete.

        Args:
            shard: which.
            chunks: all its rows in order, from `encode`.
            fallbacks: how many of their objects had costs that allow no mixture.

        Raises:
            OSError: the disk is full, or fails; the shard then does not count as complete.
        """
        bucket = self.layout.buckets[shard.bucket]
        rows = self.layout.rows_in_shard(bucket)
        for name, spec in bucket.arrays(self.layout.soft_classes).items():
            assert len(chunks[name]) == len(shard.views), name
            places = [str(shard.number), *["0"] * len(spec.row)]
            file = self.path / "buckets" / bucket.name / name / "c" / Path(*places)
            # A shard that is written a second time is never seen half.
            write_whole(file, join_rows(chunks[name], rows), wait=True)
            # The folders between the array's and the file may be new.
            for folder in file.parents[: len(places) + 1]:
                wait_for_disk(folder)
        flag = self._flag(shard)
        if flag.parent.is_dir():  # else the store is whole, and this mends it
            write_whole(flag, str(fallbacks), wait=True)
            wait_for_disk(flag.parent)

    def retract(self, shard: Shard) -> None:
        """Take back that a shard is complete, before it is written again."""
        self._flag(shard).unlink(missing_ok=True)
        wait_for_disk(self.path / SHARD_FLAGS)

    def finish(self, name: Path, spare: bool = False) -> None:
        """Give the store, all of whose shards are complete, its name; an older one makes room.

        Until then the older one is whole. Of a kill on the way nothing is lost: `finish` again.

        Args:
            name: where it lies from now on.
            spare: leave hard links to all its files where it was filled, in case that what is
                under its name is removed. A file system without hard links leaves none.
        """
        if (self.path / SHARD_FLAGS).is_dir():
            flags = [read_flag(self._flag(shard)) for shard in self.layout.shards()]
            assert None not in flags
            described = {"finished": True, "fallbacks": sum(flag or 0 for flag in flags)}
            _describe(self.path, described)
            remove_folder(self.path / SHARD_FLAGS)
        # Left by a kill in the middle of removing the flags.
        remove_folder(self.path / (SHARD_FLAGS + REMOVED))
        links = name.with_name(name.name + LINKS)
        remove_folder(links)
        whole = links if spare and _link(self.path, links) else self.path
        old = name.with_name(name.name + REMOVED)
        if name.exists():
            remove_folder(old)
            name.rename(old)
        whole.rename(name)
        wait_for_disk(name.parent)
        self.path = name
        shutil.rmtree(old, ignore_errors=True)

    def _flag(self, shard: Shard) -> Path:
        return self.path / SHARD_FLAGS / self.layout.shard_name(shard)


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
            shards=(layout.rows_in_shard(bucket), *spec.row),
            serializer=BytesCodec(endian=None if spec.dtype == "uint8" else "little"),
            compressors=COMPRESSION,
            fill_value=spec.fill,
        )


def _attributes(
    path: Path, layout: StoreLayout, fingerprint: Fingerprint, made_with: dict[str, Any]
) -> dict[str, Any]:
    return _with_digest(
        {
            "format_version": FORMAT_VERSION,
            "finished": False,
            "fallbacks": 0,
            "fingerprint": fingerprint,
            "made_with": made_with,
            "shard_rows": layout.shard_rows,
            "soft_classes": layout.soft_classes,
            "buckets": [
                {"padded": list(b.padded), "rows": b.rows, "priors": b.priors}
                for b in layout.buckets
            ],
            "table": column_digests(layout.table),
            "metadata": metadata_digests(path),
        }
    )


def _link(path: Path, links: Path) -> bool:
    """Make a folder with hard links to all files of another, where the file system has links."""
    try:
        shutil.copytree(path, links, copy_function=os.link)
    except (OSError, shutil.Error):
        remove_folder(links)
        return False
    os.sync()
    return True


def _with_digest(attributes: dict[str, Any]) -> dict[str, Any]:
    attributes = json.loads(json.dumps(attributes))
    return attributes | {"digest": digest(attributes)}


def _describe(path: Path, described: dict[str, Any]) -> None:
    """Change attributes of a store, in one step."""
    file = path / "zarr.json"
    content = json.loads(file.read_bytes())
    attributes = {n: v for n, v in content["attributes"].items() if n != "digest"}
    content["attributes"] = _with_digest(attributes | described)
    write_whole(file, json.dumps(content, indent=2), wait=True)
    wait_for_disk(path)
