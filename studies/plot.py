"""The plot of the coding study."""

from collections.abc import Mapping, Sequence

from pipeline.comparison.plots import as_png, new_figure


def plot_codings(
    points: Mapping[str, Sequence[tuple[float, float]]], bound: float, chosen: tuple[float, float]
) -> bytes:
    """How far codings mislead a student, over what they take; both on log scales.

    Args:
        points: bytes a view and error of the gradient of each coding, by the coding's tail.
        bound: of the error, drawn as a line.
        chosen: the point of the default, marked.
    """
    figure, axes = new_figure(
        "Codings of class probabilities, a PAA-trained student",
        "bytes a view like COCO's",
        "error of the gradient at the worst stage",
    )
    for i, (tail, found) in enumerate(points.items()):
        axes.plot(*zip(*found, strict=True), "os^D*v"[i % 6], label=tail, alpha=0.8)
    axes.plot(*chosen, "o", color="black", markersize=14, fillstyle="none", label="the default")
    axes.axhline(bound, color="grey", linestyle="--", label=f"{bound:.0%}")
    axes.set(xscale="log", yscale="log")
    return as_png(figure)
