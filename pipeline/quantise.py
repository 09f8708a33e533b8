"""Soft scores as bytes: a non-linear scale for probabilities, and a mean for their long tail.

Most of a detector's class probabilities are close to 0, and they dominate both the size of a
store and, summed up, the gradient of a soft-label loss. Cutting them to 0 biases that gradient;
here a probability under the cut is replaced by the mean of its class's tail in that view, which
keeps the sum.

Shapes: (..., P, C) with P priors and C classes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.params import Labels

TAIL = 0
"""The code of a probability in the tail."""


@dataclass(frozen=True)
class Coding:
    """How probabilities become codes: 0 in the tail, 1 to `levels` evenly on a power scale.

    Attributes:
        cut: probabilities under it are the tail.
        levels: number of codes beside the tail's, at most 254.
        power: code k stands for (a + (1 - a) (k - 1) / (levels - 1)) ** power with
            a = cut ** (1 / power): 1 is linear, 2 the square root.
    """

    cut: float
    levels: int
    power: float

    def __post_init__(self) -> None:
        if not (0 < self.cut < 1 and 2 <= self.levels <= 254 and self.power > 0):
            raise ValueError(f"expected 0 < cut < 1, 2 <= levels <= 254, 0 < power, got {self}")

    @property
    def _start(self) -> float:
        return float(self.cut ** (1 / self.power))

    def values(self, device: torch.device | str = "cpu") -> Tensor:
        """The probability of each code, (levels + 1,) float32; that of the tail is 0."""
        steps = torch.linspace(self._start, 1, self.levels, dtype=torch.float64, device=device)
        return torch.cat([steps.new_zeros(1), steps**self.power]).float()

    def encode(self, probabilities: Tensor) -> tuple[Tensor, Tensor]:
        """Codes (..., P, C) uint8, and the mean of each class's tail (..., C) float16."""
        in_tail = probabilities < self.cut
        scale = (self.levels - 1) / (1 - self._start)
        code = (probabilities.clamp(min=self.cut) ** (1 / self.power) - self._start) * scale
        codes = torch.where(in_tail, TAIL, code.round() + 1).to(torch.uint8)
        tail = (probabilities.double() * in_tail).sum(-2) / in_tail.sum(-2).clamp(min=1)
        return codes, tail.half()

    def decode(self, codes: Tensor, tail_mean: Tensor) -> Tensor:
        """Probabilities (..., P, C) float32."""
        found = self.values(codes.device)[codes.long()]
        return torch.where(codes == TAIL, tail_mean.float()[..., None, :], found)

    def max_error(self) -> float:
        """The largest difference between a probability of at least `cut` and its decoding."""
        values = self.values().double()[1:]
        return float(values.diff().max() / 2) + 1e-6


@dataclass(frozen=True)
class SoftSettings:
    """How soft scores are stored.

    Attributes:
        scores: the coding of class probabilities.
        min_iou: boxes are kept where they overlap an object by more than this.
    """

    scores: Coding
    min_iou: float

    @classmethod
    def of(cls, labels: Labels) -> "SoftSettings | None":
        """From the section `labels`; None where no soft scores are wanted."""
        if not labels.soft:
            return None
        return cls(Coding(**labels.scores.model_dump()), labels.min_iou)
