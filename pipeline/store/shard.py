"""Shards of Zarr v3 arrays: making one, and reading a row with one pread and one decode.

Follows the sharding-indexed codec of the Zarr v3 specification for the arrays that the writer
makes: chunks of one row, the index (offset, length per chunk, then its crc32c) at the file's end.
"""

import math
import os
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt
import zarr
from numcodecs import Zstd

COMPRESSION_LEVEL = 1
"""Of zstd; 6 makes soft scores 3 to 6 % smaller and takes twice as long, 9 four times."""
_ABSENT = (1 << 64) - 1


class CorruptShardError(Exception):
    """A shard can't be read, or a row of it is not there."""


def encode_rows(rows: npt.NDArray) -> list[bytes]:
    """The chunk of each row.

    Args:
        rows: (n, ...).
    """
    zstd = Zstd(level=COMPRESSION_LEVEL, checksum=True)
    return [zstd.encode(row) for row in np.ascontiguousarray(rows, rows.dtype.newbyteorder("<"))]


def join_rows(chunks: Sequence[bytes], shard_rows: int) -> bytes:
    """The file of a shard, as zarr-python writes it, which takes three times as long.

    Args:
        chunks: of its rows, at most `shard_rows`.
        shard_rows: rows in a shard.
    """
    index = np.full((shard_rows, 2), _ABSENT, "<u8")
    lengths = np.array([len(chunk) for chunk in chunks], "<u8")
    index[: len(chunks), 0] = np.cumsum(lengths) - lengths
    index[: len(chunks), 1] = lengths
    end = index.tobytes()
    return b"".join([*chunks, end, google_crc32c.value(end).to_bytes(4, "little")])


class StoreFolder:
    """A store's folder, held open; picklable, safe after fork.

    What is read through it is of this store, even where another one takes its name meanwhile: a
    reader of a store that is replaced gets an error, never labels of two teachers.

    Attributes:
        path: of the folder.
        handle: for `dir_fd`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        weakref.finalize(self, os.close, self.handle)

    def __reduce__(self) -> tuple[type["StoreFolder"], tuple[Path]]:
        return StoreFolder, (self.path,)


class ShardedRows:
    """Rows of a sharded array on a local disk; safe after fork, as it keeps no open file.

    Args:
        store: the folder of the store.
        name: of the array's folder in it.
        shard_rows: rows in a shard.
        row: shape of a row.
        dtype: little-endian type of the entries.
    """

    def __init__(
        self,
        store: StoreFolder,
        name: str,
        shard_rows: int,
        row: tuple[int, ...],
        dtype: npt.DTypeLike,
    ) -> None:
        self.store = store
        self.name = name
        self.shard_rows = shard_rows
        self.row = row
        self.dtype = np.dtype(dtype).newbyteorder("<")
        self._bytes = math.prod(row) * self.dtype.itemsize
        self._tail = "/".join(["0"] * len(row))
        self._indexes: dict[int, npt.NDArray[np.uint64]] = {}
        self._zstd = Zstd()

    def read(self, row: int) -> npt.NDArray:
        """The row, read-only.

        Raises:
            CorruptShardError: the row was never written, or its bytes are not what was written.
        """
        number, chunk = divmod(row, self.shard_rows)
        try:
            file = self._open(number)
            try:
                if number not in self._indexes:
                    self._indexes[number] = self._read_index(file, number)
                offset, length = self._indexes[number][chunk].tolist()
                if offset == _ABSENT:
                    raise CorruptShardError(f"row {row} of shard {number} was never written")
                data = os.pread(file, length, offset)
            finally:
                os.close(file)
        except OSError as error:
            raise CorruptShardError(f"shard {number} can't be read: {error.strerror}") from None
        if len(data) != length:
            raise CorruptShardError(f"shard {number} ends inside row {row}")
        try:
            values = self._zstd.decode(data)
        except Exception as error:  # a damaged length asks for any amount of memory
            raise CorruptShardError(f"row {row} of shard {number}: {error}") from None
        if len(values) != self._bytes:
            raise CorruptShardError(
                f"row {row} of shard {number} has {len(values)} bytes, expected {self._bytes}"
            )
        return np.frombuffer(values, self.dtype).reshape(self.row)

    def file(self, number: int) -> Path:
        """Where a shard is."""
        return self.store.path / self._place(number)

    def check_index(self, number: int, rows: int) -> None:
        """Check that a shard's index names each of its rows once, inside the file.

        Args:
            number: which shard.
            rows: rows that it holds; there is nothing after them.

        Raises:
            CorruptShardError: the index is damaged.
        """
        try:
            file = self._open(number)
            try:
                index = self._read_index(file, number)
                end = os.fstat(file).st_size - index.nbytes - 4
            finally:
                os.close(file)
        except OSError as error:
            raise CorruptShardError(f"shard {number} can't be read: {error.strerror}") from None
        if not (index[rows:] == _ABSENT).all():
            raise CorruptShardError(f"the index of shard {number} has more than {rows} rows")
        last = 0
        for offset, length in sorted(index[:rows].tolist()):
            if offset < last or offset + length > end:
                raise CorruptShardError(
                    f"the index of shard {number} has rows that overlap or lie outside the file"
                )
            last = offset + length

    def _place(self, number: int) -> str:
        return f"{self.name}/c/{number}/{self._tail}"

    def _open(self, number: int) -> int:
        return os.open(self._place(number), os.O_RDONLY, dir_fd=self.store.handle)

    def _read_index(self, file: int, number: int) -> npt.NDArray[np.uint64]:
        size = self.shard_rows * 16 + 4
        end = os.fstat(file).st_size
        data = os.pread(file, size, max(0, end - size))
        if len(data) != size:
            raise CorruptShardError(f"shard {number} is too short for its index")
        if google_crc32c.value(data[:-4]) != int.from_bytes(data[-4:], "little"):
            raise CorruptShardError(f"the index of shard {number} has a wrong checksum")
        return np.frombuffer(data[:-4], "<u8").reshape(-1, 2)


def read_flag(file: Path) -> int | None:
    """The number in a file of one line; None where it is missing or torn."""
    try:
        return int(file.read_bytes())
    except (OSError, ValueError):
        return None


class ZarrRows:
    """The same rows through zarr-python, for stores that are not on a local disk.

    Args:
        array: the sharded array.
    """

    def __init__(self, array: zarr.Array[Any]) -> None:
        self.array = array

    def read(self, row: int) -> npt.NDArray:
        """The row.

        Raises:
            CorruptShardError: its bytes are not what was written.
        """
        try:
            return np.asarray(self.array[row])
        except Exception as error:  # codecs and file systems raise anything
            raise CorruptShardError(f"row {row}: {error}") from None
