"""The numbers behind the plots as CSV files, for `dvc plots` and for any other tool."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from pipeline.comparison.plots import curve_window, smooth
from pipeline.comparison.records import Curve, Model

POINTS = 200
"""Of a curve: a page holds the points of all curves, and an epoch of COCO has 7,330 steps of 16."""


def curves_csv(curves: Mapping[str, Curve]) -> str:
    """The running means of the total losses, as drawn in `curves.png`, at `POINTS` steps at most.

    The steps are as far from each other as can be; the first and the last are among them. What
    each step logged is in the model's `training.json`.

    Args:
        curves: by name of the model.

    Returns:
        Rows of `student`, `step` (counted from 1) and `loss`.
    """
    rows = []
    for name, curve in curves.items():
        steps = len(curve.losses)
        losses = smooth(curve.losses, curve_window(steps))
        for i in np.linspace(0, steps - 1, min(steps, POINTS)).round().astype(int):
            rows.append([name, curve.steps[i], round(float(losses[i]), 5)])
    return _csv(["student", "step", "loss"], rows)


def ap_csv(models: Iterable[Model]) -> str:
    """Rows of `student`, `metric` (AP, AP50 or AP75) and `value`, of what could be measured."""
    metrics = ("AP", "AP50", "AP75")
    rows = [[m.name, n, m.metrics[n]] for m in models for n in metrics]
    return _csv(["student", "metric", "value"], [row for row in rows if row[2] is not None])


def time_csv(models: Iterable[Model]) -> str:
    """Rows of `student`, `minutes` of training and `AP`, of models that were trained here."""
    rows = [
        [model.name, round(model.run.total_seconds / 60, 3), model.metrics["AP"]]
        for model in models
        if model.run and model.metrics["AP"] is not None
    ]
    return _csv(["student", "minutes", "AP"], rows)


def _csv(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows([header, *rows])
    return file.getvalue()
