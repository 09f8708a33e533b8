"""The codings that the study compares: of class probabilities, of boxes and their scores, of both.

Shapes: P priors of a view, C classes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from numcodecs.zstd import Zstd
from torch import Tensor

from pipeline.store.coding import (
    TAIL,
    Coding,
    SoftSettings,
    decode_distances,
    decode_fraction,
    encode_distances,
    encode_fraction,
)
from pipeline.store.shard import COMPRESSION_LEVEL

Arrays = tuple[Tensor, ...]
"""What a coding writes of a view."""

Tail = Literal["0", "view", "class", "level and class", "class and place"]
"""What a probability in the tail becomes: 0, or a mean over the view's tail, or that of its class,
or that of its class on its pyramid level, or as `Coding` has it."""

LEVELS, POWER = 63, 1.5
CUTS = (0.001, 0.003, 0.007, 0.012, 0.02, 0.03)
MIN_SCORES = (0.012, 0.03, 0.05, 0.1, 0.2)

_ZSTD = Zstd(level=COMPRESSION_LEVEL, checksum=True)


@dataclass(frozen=True)
class ClassCoding:
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
class BoxCoding:
    """A way to store a view's boxes: what `SoftPredictions` has beside class probabilities.

    Attributes:
        name: for the table.
        encode: makes the arrays of `max_iou` (P,), `distances` (P, 4) and `quality` (P,).
        decode: makes these three of the arrays, float32.
    """

    name: str
    encode: Callable[[Tensor, Tensor, Tensor], Arrays]
    decode: Callable[[Tensor, Tensor, Tensor], Arrays]


@dataclass(frozen=True)
class StoreCoding:
    """All that a store keeps of a view, boxes only where `settings` say so.

    Attributes:
        name: for the table.
        settings: of the store; a `min_score` of 0 keeps all boxes.
    """

    name: str
    settings: SoftSettings

    def encode(
        self, probabilities: Tensor, max_iou: Tensor, distances: Tensor, quality: Tensor
    ) -> Arrays:
        """The arrays of a view.

        Args:
            probabilities: (P, C).
            max_iou: (P,), wherever a box overlaps an object at all.
            distances: (P, 4) of all boxes.
            quality: (P,) likewise.
        """
        overlaps = max_iou > self.settings.min_iou
        kept = overlaps | (probabilities.amax(1) >= self.settings.min_score)
        return (
            *self.settings.scores.encode(probabilities),
            encode_fraction(max_iou * overlaps),
            encode_distances(distances * kept[:, None]),
            encode_fraction(quality * overlaps),
        )

    def decode(self, arrays: Arrays) -> dict[str, Tensor]:
        """The fields of `SoftPredictions` for a view, from its arrays."""
        *classes, max_iou, distances, quality = arrays
        return {
            "probabilities": self.settings.scores.decode(*classes),
            "max_iou": decode_fraction(max_iou),
            "kept": (distances != 0).any(1),
            "distances": decode_distances(distances),
            "quality": decode_fraction(quality),
        }


def chunk(array: Tensor) -> bytes:
    """An array as a chunk of the store."""
    data: bytes = _ZSTD.encode(array.contiguous().numpy())
    return data


def unchunk(data: bytes, like: Tensor) -> Tensor:
    """The array of a chunk, of the shape and type of `like`."""
    return torch.frombuffer(bytearray(_ZSTD.decode(data)), dtype=like.dtype).view(like.shape)


def nearest_of(name: str, values: Tensor) -> ClassCoding:
    """Every probability as the nearest of a table of ascending values, with no tail."""
    table = values.float()
    middles = (table[1:] + table[:-1]) / 2
    return ClassCoding(
        name,
        lambda probabilities, _: (
            torch.bucketize(probabilities.mT.contiguous(), middles).to(torch.uint8),
        ),
        lambda arrays, _: table[arrays[0].long()].mT,
    )


def with_tail(coding: Coding, tail: Tail) -> ClassCoding:
    """The codes of `coding`, with another model of the tail."""
    if tail == "class and place":
        return ClassCoding(
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

    return ClassCoding(_name(coding, tail), encode, decode)


def _name(coding: Coding, tail: Tail) -> str:
    becomes = "0" if tail == "0" else f"mean by {tail}"
    return f"cut {coding.cut}, {coding.levels} levels, power {coding.power:g}, tail: {becomes}"


def class_codings(default: Coding) -> list[ClassCoding]:
    """The codings of class probabilities that the study compares, each once.

    Args:
        default: that of the settings, which is among them.
    """
    found = [
        ClassCoding("float16", lambda p, _: (p.mT.half(),), lambda arrays, _: arrays[0].mT.float()),
        nearest_of("uint8, linear", torch.linspace(0, 1, 256)),
        nearest_of("uint8 of the square root", torch.linspace(0, 1, 256) ** 2),
        nearest_of(
            "5-bit log scale from 1e-4", torch.cat([torch.zeros(1), torch.logspace(-4, 0, 31)])
        ),
    ]
    cuts = [Coding(cut=cut, levels=LEVELS, power=POWER) for cut in CUTS]
    tails: tuple[Tail, ...] = ("0", "view", "class", "level and class", "class and place")
    found += [with_tail(coding, tail) for coding in cuts for tail in tails]
    best: Tail = "class and place"
    others = [Coding(cut=cut, levels=LEVELS, power=POWER) for cut in (0.01, 0.015)]
    others += [Coding(cut=default.cut, levels=levels, power=POWER) for levels in (15, 31, 127, 254)]
    others += [Coding(cut=default.cut, levels=LEVELS, power=power) for power in (1, 2, 3, 4)]
    found += [with_tail(coding, best) for coding in (*others, default)]
    return list({coding.name: coding for coding in found}.values())


def box_codings() -> list[BoxCoding]:
    """The codings of boxes and their scores that the study compares."""
    return [
        BoxCoding(
            "float16",
            lambda *parts: tuple(part.half() for part in parts),
            lambda *arrays: tuple(array.float() for array in arrays),
        ),
        BoxCoding(
            "distances float16, both IoUs uint8",
            lambda max_iou, distances, quality: (
                encode_fraction(max_iou),
                distances.half(),
                encode_fraction(quality),
            ),
            lambda max_iou, distances, quality: (
                decode_fraction(max_iou),
                distances.float(),
                decode_fraction(quality),
            ),
        ),
        BoxCoding(
            "distances int8, both IoUs uint8",
            lambda max_iou, distances, quality: (
                encode_fraction(max_iou),
                encode_distances(distances),
                encode_fraction(quality),
            ),
            lambda max_iou, distances, quality: (
                decode_fraction(max_iou),
                decode_distances(distances),
                decode_fraction(quality),
            ),
        ),
    ]


def store_codings(settings: SoftSettings) -> list[StoreCoding]:
    """Stores that keep more and fewer boxes, each once.

    Args:
        settings: those of the project, which are among them.
    """
    scores = sorted({0.0, *MIN_SCORES, settings.min_score})
    return [
        StoreCoding(
            f"min_score {score:g}" if score else "all boxes",
            settings.model_copy(update={"min_score": score}),
        )
        for score in scores
    ]
