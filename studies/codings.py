"""The codings that `lad study` compares: of class probabilities, and of boxes and their scores."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from numcodecs.zstd import Zstd
from torch import Tensor

from pipeline.store.coding import (
    TAIL,
    Coding,
    decode_share,
    decode_sides,
    encode_share,
    encode_sides,
)
from pipeline.store.shard import COMPRESSION_LEVEL

Arrays = tuple[Tensor, ...]
"""What a coding writes of a view."""

Tail = Literal["0", "view", "class", "level and class", "class and place"]
"""What a probability in the tail becomes: 0, or a mean over the view's tail, or that of its class,
or that of its class on its pyramid level, or as `Coding` has it."""

LEVELS, POWER = 63, 1.5
CUTS = (0.001, 0.003, 0.007, 0.012, 0.02, 0.03)

_ZSTD = Zstd(level=COMPRESSION_LEVEL, checksum=True)


@dataclass(frozen=True)
class Trial:
    """A way to store the class probabilities of a view.

    Attributes:
        name: for the table.
        encode: makes the arrays of a view of probabilities (P, C) and each prior's level (P,).
        decode: makes probabilities (P, C) float32 of the arrays and the levels.
    """

    name: str
    encode: Callable[[Tensor, Tensor], Arrays]
    decode: Callable[[Arrays, Tensor], Tensor]


@dataclass(frozen=True)
class BoxTrial:
    """A way to store the overlap (P,), the sides (P, 4) and the IoU (P,) of a view's boxes.

    Attributes:
        name: for the table.
        encode: makes their arrays.
        decode: makes them of the arrays, float32.
    """

    name: str
    encode: Callable[[Tensor, Tensor, Tensor], Arrays]
    decode: Callable[[Tensor, Tensor, Tensor], Arrays]


def chunk(array: Tensor) -> bytes:
    """An array as a chunk of the store."""
    data: bytes = _ZSTD.encode(array.contiguous().numpy())
    return data


def unchunk(data: bytes, like: Tensor) -> Tensor:
    """The array of a chunk, of the shape and type of `like`."""
    return torch.frombuffer(bytearray(_ZSTD.decode(data)), dtype=like.dtype).view(like.shape)


def whole(name: str, values: Tensor) -> Trial:
    """Every probability as the nearest of a table of ascending values, with no tail."""
    table = values.float()
    middles = (table[1:] + table[:-1]) / 2
    return Trial(
        name,
        lambda probabilities, _: (
            torch.bucketize(probabilities.mT.contiguous(), middles).to(torch.uint8),
        ),
        lambda arrays, _: table[arrays[0].long()].mT,
    )


def tailed(coding: Coding, tail: Tail) -> Trial:
    """The codes of `coding`, with another model of the tail."""
    if tail == "class and place":
        return Trial(
            _name(coding, tail),
            lambda probabilities, _: coding.encode(probabilities),
            lambda arrays, _: coding.decode(*arrays),
        )

    def encode(probabilities: Tensor, level: Tensor) -> Arrays:
        codes = coding.encode(probabilities)[0]
        if tail == "0":
            return (codes,)
        in_tail = codes.mT == TAIL
        found, count = torch.where(in_tail, probabilities, 0).double(), in_tail.double()
        if tail == "level and class":
            sums = found.new_zeros(int(level.max()) + 1, found.shape[1])
            found, count = (sums.index_add(0, level, part) for part in (found, count))
        else:
            dims = (0, 1) if tail == "view" else (0,)
            found, count = (part.sum(dims, keepdim=True) for part in (found, count))
        return codes, (found / count.clamp(min=1)).half()

    def decode(arrays: Arrays, level: Tensor) -> Tensor:
        codes = arrays[0].mT
        mean = arrays[1].float() if len(arrays) > 1 else torch.zeros(1, 1)
        of_prior = mean[level] if len(mean) > 1 else mean
        return torch.where(codes == TAIL, of_prior, coding.values()[codes.long()])

    return Trial(_name(coding, tail), encode, decode)


def _name(coding: Coding, tail: Tail) -> str:
    becomes = "0" if tail == "0" else f"mean by {tail}"
    return f"cut {coding.cut}, {coding.levels} levels, power {coding.power:g}, tail: {becomes}"


def trials(default: Coding) -> list[Trial]:
    """What the study compares, without repetition."""
    found = [
        Trial("float16", lambda p, _: (p.mT.half(),), lambda arrays, _: arrays[0].mT.float()),
        whole("uint8, linear", torch.linspace(0, 1, 256)),
        whole("uint8 of the square root", torch.linspace(0, 1, 256) ** 2),
        whole("5-bit log scale from 1e-4", torch.cat([torch.zeros(1), torch.logspace(-4, 0, 31)])),
    ]
    tails: tuple[Tail, ...] = ("0", "view", "class", "level and class", "class and place")
    found += [tailed(Coding(cut, LEVELS, POWER), tail) for cut in CUTS for tail in tails]
    best: Tail = "class and place"
    others = [Coding(cut, LEVELS, POWER) for cut in (0.01, 0.015)]
    others += [Coding(default.cut, levels, POWER) for levels in (15, 31, 127, 254)]
    others += [Coding(default.cut, LEVELS, power) for power in (1, 2, 3, 4)]
    found += [tailed(coding, best) for coding in (*others, default)]
    return list({trial.name: trial for trial in found}.values())


def box_trials() -> list[BoxTrial]:
    """The codings of boxes and their scores that the study compares."""
    return [
        BoxTrial(
            "float16",
            lambda *parts: tuple(part.half() for part in parts),
            lambda *arrays: tuple(array.float() for array in arrays),
        ),
        BoxTrial(
            "sides float16, overlap and IoU uint8",
            lambda overlap, sides, iou: (encode_share(overlap), sides.half(), encode_share(iou)),
            lambda overlap, sides, iou: (decode_share(overlap), sides.float(), decode_share(iou)),
        ),
        BoxTrial(
            "sides int8, overlap and IoU uint8",
            lambda overlap, sides, iou: (
                encode_share(overlap),
                encode_sides(sides),
                encode_share(iou),
            ),
            lambda overlap, sides, iou: (
                decode_share(overlap),
                decode_sides(sides),
                decode_share(iou),
            ),
        ),
    ]
