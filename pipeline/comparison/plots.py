"""The plots of the comparison, as PNG files."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOURS = 10
"""After so many, matplotlib's begin again."""


@dataclass(frozen=True)
class Points:
    """What several seeds of one row measured.

    Attributes:
        x: of each seed.
        y: of each seed.
    """

    x: Sequence[float]
    y: Sequence[float]


def smooth(values: Sequence[float], window: int) -> np.ndarray:
    """The running mean over `window` (odd, at most all) values, over fewer at both ends."""
    ones = np.ones(window)
    counts = np.convolve(np.ones(len(values)), ones, "same")
    return np.convolve(values, ones, "same") / counts


def curve_window(steps: int) -> int:
    """Over how many steps a curve's running mean goes: a 25th of them, and an odd number."""
    return steps // 50 * 2 + 1


def plot_curves(
    curves: Mapping[str, tuple[Sequence[int], Sequence[float]]], title: str, label: str
) -> bytes:
    """Running means of curves over steps.

    Args:
        curves: by name, steps and values.
        title: of the plot.
        label: what the values are.
    """
    figure, axes = new_figure(f"{title} (running mean)", "step", label)
    for i, (name, (steps, values)) in enumerate(curves.items()):
        style = ("-", "--", ":", "-.")[i // COLOURS % 4]
        means = smooth(values, curve_window(len(values)))
        axes.plot(steps, means, style, label=name, linewidth=1.5)
    return as_png(figure)


def plot_ap(rows: Mapping[str, Sequence[float]]) -> bytes:
    """AP by row: a bar for the mean, a dot for each seed.

    Args:
        rows: AP of each seed, by name; the first is on top.
    """
    figure, axes = new_figure("AP on the validation images", "AP", "")
    for place, values in enumerate(rows.values()):
        axes.barh(place, np.mean(values), height=0.6, color=f"C{place % COLOURS}", alpha=0.5)
        axes.plot(values, [place] * len(values), "o", color=f"C{place % COLOURS}", markersize=4)
    axes.set_yticks(range(len(rows)), list(rows))
    axes.invert_yaxis()
    return as_png(figure, legend=False)


def plot_ap_over_time(rows: Mapping[str, Points]) -> bytes:
    """AP over training time: the mean of each row, with the spread of its seeds.

    Args:
        rows: minutes and AP of each seed, by name.
    """
    figure, axes = new_figure("AP over training time", "minutes of training", "AP")
    for i, (name, points) in enumerate(rows.items()):
        axes.errorbar(
            np.mean(points.x),
            np.mean(points.y),
            xerr=np.std(points.x),
            yerr=np.std(points.y),
            fmt="os^D"[i // COLOURS % 4],
            capsize=2,
            label=name,
        )
    axes.set_xlim(left=0)
    return as_png(figure)


def new_figure(title: str, x: str, y: str) -> tuple[Figure, Axes]:
    """A figure with one pair of axes, and what is written at them."""
    # A Figure made without pyplot is drawn by Agg: it needs no display and no closing.
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def as_png(figure: Figure, legend: bool = True) -> bytes:
    """The figure as the content of a PNG file."""
    if legend and figure.axes[0].get_legend_handles_labels()[0]:
        figure.legend(loc="outside right upper", frameon=False)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=120)
    return file.getvalue()
