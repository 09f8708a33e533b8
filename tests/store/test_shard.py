"""Shards that are written without zarr-python equal those that it writes."""

from pathlib import Path

import numpy as np
import pytest
import zarr
from zarr.codecs import BytesCodec, ZstdCodec

from pipeline.store.shard import COMPRESSION_LEVEL, encode_rows, join_rows


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float16"])
@pytest.mark.parametrize("rows", [5, 8], ids=["not full", "full"])
@pytest.mark.parametrize("row", [(300,), (7, 40)], ids=str)
def test_a_shard_is_byte_for_byte_that_of_zarr(
    tmp_path: Path, dtype: str, rows: int, row: tuple[int, ...]
) -> None:
    values = np.random.default_rng(0).integers(0, 5, (rows, *row)).astype(dtype)
    array = zarr.create_array(
        tmp_path / "array",
        shape=values.shape,
        dtype=dtype,
        chunks=(1, *row),
        shards=(8, *row),
        serializer=BytesCodec(endian=None if dtype == "uint8" else "little"),
        compressors=ZstdCodec(level=COMPRESSION_LEVEL, checksum=True),
        fill_value=9,
    )
    array[:] = values
    (file,) = (file for file in (tmp_path / "array/c").rglob("*") if file.is_file())
    assert join_rows(encode_rows(values), 8) == file.read_bytes()
    big_endian = values.astype(values.dtype.newbyteorder(">"))
    assert join_rows(encode_rows(big_endian), 8) == file.read_bytes()
