"""Soft scores as bytes: a non-linear scale for probabilities, and a model of their long tail.

Most of a detector's class probabilities are close to 0. They dominate the size of a store and,
summed up, much of the gradient of a soft-label loss. Cutting them to 0 biases that gradient. Here
a probability under the cut becomes the mean of its class in that view times a scale of the place
where its prior lies: background is quieter in one corner of an image than in another, for all
classes alike. Sums over a class stay what they were. docs/coding.md has the measurements.

Shapes: (..., P, C) with P priors, C classes, and R = ceil(P / RUN) runs of neighbouring priors.
"""

import math
from functools import cache

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from pipeline.project.settings import Section

TAIL = 0
"""The code of a probability in the tail."""
RUN = 4
"""Priors that share a tail scale: consecutive ones, which are neighbours in a row of cells."""
STEPS_PER_OCTAVE = 2
NEUTRAL = 128
"""A tail scale of code k is 2 ** ((k - NEUTRAL) / STEPS_PER_OCTAVE)."""
OCTAVES = 16
"""Tail scales lie between 2 ** -OCTAVES and 2 ** OCTAVES."""


class Coding(Section):
    """How probabilities become codes: 0 in the tail, 1 to `levels` for even bins on a power scale.

    With a = cut ** (1 / power), bin k spans (a + (1 - a) (k - 1) / levels) ** power to the same
    with k; its code stands for the same with k - 1/2. With a cut of 0.01, 63 levels, power 2, bins
    begin at 0.01, 0.013, 0.016, ..., 0.97: their roots are evenly spaced, as a small probability
    matters more to a gradient than a large one that is off by as much. In a view whose tail of a
    class is 0.001, 0.003 and 0.005, all three become the code 0, which stands for their mean 0.003.
    """

    cut: float = Field(0.012, gt=0, lt=1, description="probabilities under it are the tail")
    levels: int = Field(63, ge=2, le=254, description="number of codes beside the tail's")
    power: float = Field(1.5, gt=0, description="1: bins of equal width; 2: of their roots")

    def _on_scale(self, bins: Tensor) -> Tensor:
        start = self.cut ** (1 / self.power)
        return (start + (1 - start) * bins / self.levels) ** self.power

    def edges(self) -> Tensor:
        """Where each bin begins, (levels,) float32; the first is `cut`."""
        edges = self._on_scale(torch.arange(self.levels, dtype=torch.float64)).float()
        edges[0] = self.cut
        return edges

    def values(self) -> Tensor:
        """The probability of each code, (levels + 1,) float32; that of the tail is 0."""
        middles = self._on_scale(torch.arange(self.levels, dtype=torch.float64) + 0.5)
        return F.pad(middles, (1, 0)).float()

    def max_error(self) -> float:
        """The largest difference between a probability of at least `cut` and its decoding."""
        bounds = F.pad(self.edges().double(), (0, 1), value=1.0)
        values = self.values()[1:].double()
        return float(torch.maximum(values - bounds[:-1], bounds[1:] - values).max())

    def code_of(self, probability: float) -> int:
        """The code of a probability."""
        return int(self._codes(torch.tensor([probability])))

    def encode(self, probabilities: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Code probabilities in [0, 1], each view for itself.

        Args:
            probabilities: (..., P, C) float32.

        Returns:
            Codes (..., C, P) uint8, class by class because that compresses best; the tail mean of
            each class (..., C) float16, where the scale is 1; and the codes of the tail scales
            (..., R) uint8.

        Raises:
            ValueError: a probability is not a number.
        """
        if probabilities.sum().isnan():
            raise ValueError("a probability is not a number: the teacher's outputs are broken")
        by_class = probabilities.mT.contiguous()
        codes = self._codes(by_class)
        tail, in_tail = _tail(by_class, codes)
        scale = _scale(tail, in_tail)
        return codes, _mean(tail, in_tail, scale).half(), scale

    def _codes(self, probabilities: Tensor) -> Tensor:
        # Comparing with a table gives the same codes on every device; a power would not.
        edges = _tables(self, probabilities.device)[0]
        return torch.bucketize(probabilities, edges, right=True, out_int32=True).to(torch.uint8)

    def decode(self, codes: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
        """Probabilities (..., P, C) float32 from what `encode` returns."""
        # index_select takes half the time of indexing, and a product less than `where`.
        above = _tables(self, codes.device)[1].index_select(0, codes.flatten().int())
        tail = mean.float()[..., None] * _spread(scale, codes.shape[-1])[..., None, :]
        in_tail = (codes == TAIL).float()
        return above.view_as(codes).addcmul_(tail.clamp_(max=self.cut), in_tail).mT


@cache
def _tables(coding: Coding, device: torch.device) -> tuple[Tensor, Tensor]:
    """Its edges and values on a device, which would else wait for them in each step."""
    return coding.edges().to(device), coding.values().to(device)


def tail_scale(probabilities: Tensor, codes: Tensor) -> Tensor:
    """The codes (..., R) uint8 of how each run's tail compares with that of its classes.

    Args:
        probabilities: (..., P, C).
        codes: (..., C, P), which say what is in the tail.
    """
    return _scale(*_tail(probabilities.mT, codes))


def tail_mean(probabilities: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    """The mean (..., C) float32 of each class's tail, such that what is decoded keeps its sum.

    Args:
        probabilities: (..., P, C).
        codes: (..., C, P), which say what is in the tail.
        scale: (..., R) of `tail_scale`.
    """
    return _mean(*_tail(probabilities.mT, codes), scale)


def _tail(by_class: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """What is in the tail and else 0, and 1 where it is; (..., C, P) float32."""
    # A product with 0 or 1 takes less time than `where`, and this less than to convert booleans.
    in_tail = torch.eq(codes, TAIL, out=by_class.new_empty(codes.shape))
    return by_class * in_tail, in_tail


def _scale(tail: Tensor, in_tail: Tensor) -> Tensor:
    usual = _ratio(tail.sum(-1), in_tail.sum(-1), 0)
    expected = (in_tail * usual[..., None]).sum(-2)
    return _scale_code(_ratio(_by_run(tail.sum(-2)), _by_run(expected), 1))


def _mean(tail: Tensor, in_tail: Tensor, scale: Tensor) -> Tensor:
    spread = _spread(scale, in_tail.shape[-1])
    return _ratio(tail.sum(-1), (in_tail * spread[..., None, :]).sum(-1), 0)


def _ratio(numerator: Tensor, denominator: Tensor, otherwise: float) -> Tensor:
    """The quotient, and `otherwise` where there is nothing to divide by."""
    some = denominator > 0
    return torch.where(some, numerator / torch.where(some, denominator, 1), otherwise)


def _by_run(values: Tensor) -> Tensor:
    """Sums of (..., P) over runs of priors, (..., R)."""
    missing = -values.shape[-1] % RUN
    return F.pad(values, (0, missing)).unflatten(-1, (-1, RUN)).sum(-1)


def _scale_code(scale: Tensor) -> Tensor:
    octaves = scale.clamp(2.0**-OCTAVES, 2.0**OCTAVES).log2()
    return ((octaves * STEPS_PER_OCTAVE).round() + NEUTRAL).to(torch.uint8)


def _spread(tail_scale: Tensor, priors: int) -> Tensor:
    """The tail scale of each prior, (..., P) float32."""
    scale = torch.exp2((tail_scale.float() - NEUTRAL) / STEPS_PER_OCTAVE)
    return scale.repeat_interleave(RUN, dim=-1)[..., :priors]


LONGEST = 128.0
"""Distances beyond it are moved there, in strides."""
BEND = 2.0
DISTANCE_CODES = 127


def encode_distances(distances: Tensor) -> Tensor:
    """Code distances of a box's sides from a prior's centre, in strides, as int8.

    Nearly linear up to `BEND` strides and logarithmic beyond: half a step is 0.04 strides, or 2 %
    of a long distance. So 1 is coded as 13 and comes back as 1.03, 50 as 102 and 49.2.
    """
    codes = torch.asinh(distances / BEND) * _DISTANCE_SCALE
    return codes.round().clamp(-DISTANCE_CODES, DISTANCE_CODES).to(torch.int8)


def decode_distances(codes: Tensor) -> Tensor:
    """Distances in strides, float32, from codes of `encode_distances`."""
    return torch.sinh(codes.float() / _DISTANCE_SCALE) * BEND


_DISTANCE_SCALE = DISTANCE_CODES / math.asinh(LONGEST / BEND)


def encode_fraction(fractions: Tensor) -> Tensor:
    """Code numbers from 0 to 1 as uint8; only 0 becomes 0."""
    return torch.where(fractions > 0, (fractions * 255).round().clamp(min=1), 0).to(torch.uint8)


def decode_fraction(codes: Tensor) -> Tensor:
    """Numbers from 0 to 1, float32, from codes of `encode_fraction`."""
    return codes.float() / 255


class SoftSettings(Section):
    """How soft scores are stored."""

    scores: Coding = Field(description="the coding of class probabilities")
    min_iou: float = Field(description="boxes are kept where they overlap an object by more")
    min_score: float = Field(description="and where a class has at least this probability")
