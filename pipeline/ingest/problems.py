"""What is wrong with a data set: collected, counted and put into one message."""

from collections import Counter
from dataclasses import dataclass

EXAMPLES = 20
"""How many problems a message lists one by one."""


@dataclass(frozen=True)
class Problem:
    """What is wrong with an image or annotation: a kind to count, and the details."""

    kind: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.kind}: {self.detail}" if self.detail else self.kind


class Problems:
    """Collects what is wrong, as a text that names the first and counts all."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.counts: Counter[str] = Counter()

    def add(self, problem: Problem, where: str) -> None:
        """Add what is wrong with `where`."""
        self.counts[problem.kind] += 1
        if len(self.lines) < EXAMPLES:
            self.lines.append(f"  {where}: {problem}")

    def __str__(self) -> str:
        more = self.counts.total() - len(self.lines)
        lines = [*self.lines, f"  and {more} more"] if more else self.lines
        counts = [f"  {count} x {kind}" for kind, count in self.counts.items()]
        return "\n".join([*lines, "in all", *counts])
