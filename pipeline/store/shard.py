"""Reading one row of a sharded Zarr v3 array on a local disk: one pread, one decode.

Follows the sharding-indexed codec of the Zarr v3 specification for the arrays that the writer
makes: chunks of one row, the index (offset, length per chunk, then its crc32c) at the file's end.
"""

import os
from pathlib import Path

import google_crc32c
import numpy as np
import numpy.typing as npt
from numcodecs import Zstd

_ABSENT = (1 << 64) - 1


class CorruptShardError(Exception):
    """A shard can't be read, or a row of it is not there."""


class ShardedRows:
    """Rows of a 2-D sharded array; safe after fork, as it keeps no open file.

    Args:
        folder: the array's folder.
        shard_rows: rows in a shard.
        columns: entries in a row.
        dtype: little-endian type of the entries.
    """

    def __init__(self, folder: Path, shard_rows: int, columns: int, dtype: npt.DTypeLike) -> None:
        self.folder = folder
        self.shard_rows = shard_rows
        self.columns = columns
        self.dtype = np.dtype(dtype).newbyteorder("<")
        self._indexes: dict[int, npt.NDArray[np.uint64]] = {}
        self._zstd = Zstd()

    def read(self, row: int) -> npt.NDArray:
        """The row, (columns,), read-only.

        Raises:
            CorruptShardError: the row was never written, or its bytes are not what was written.
        """
        number, chunk = divmod(row, self.shard_rows)
        try:
            file = os.open(self.folder / "c" / str(number) / "0", os.O_RDONLY)
        except OSError as error:
            raise CorruptShardError(f"shard {number} can't be opened: {error.strerror}") from None
        try:
            if number not in self._indexes:
                self._indexes[number] = self._read_index(file, number)
            offset, length = self._indexes[number][chunk].tolist()
            if offset == _ABSENT:
                raise CorruptShardError(f"row {row} of shard {number} was never written")
            data = os.pread(file, length, offset)
        finally:
            os.close(file)
        if len(data) != length:
            raise CorruptShardError(f"shard {number} ends inside row {row}")
        try:
            values = np.frombuffer(self._zstd.decode(data), self.dtype)
        except (RuntimeError, ValueError) as error:
            raise CorruptShardError(f"row {row} of shard {number}: {error}") from None
        if len(values) != self.columns:
            raise CorruptShardError(
                f"row {row} of shard {number} has {len(values)} entries, expected {self.columns}"
            )
        return values

    def _read_index(self, file: int, number: int) -> npt.NDArray[np.uint64]:
        size = self.shard_rows * 16 + 4
        end = os.fstat(file).st_size
        data = os.pread(file, size, max(0, end - size))
        if len(data) != size:
            raise CorruptShardError(f"shard {number} is too short for its index")
        if google_crc32c.value(data[:-4]) != int.from_bytes(data[-4:], "little"):
            raise CorruptShardError(f"the index of shard {number} has a wrong checksum")
        return np.frombuffer(data[:-4], "<u8").reshape(-1, 2)
