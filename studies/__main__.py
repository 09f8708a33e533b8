"""`lad study`: what codings of the teacher's soft scores cost, and how far they mislead."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click

from pipeline.comparison.plots import plot_codings
from pipeline.project.errors import UserError
from pipeline.project.machine import machine
from pipeline.project.params import Scores
from pipeline.project.params_file import load_params
from pipeline.project.paths import Paths
from pipeline.store.coding import Coding
from studies.coding_study import Result, study_codings
from studies.codings import tailed

BOUND = 0.01


@click.command("study")
@click.option("--student", help="Whose config and training to use.  [the first one]")
@click.option("--views", default=24, show_default=True, help="Views to measure.")
@click.option("--epochs", type=click.IntRange(min=1), help="Of training.  [the student's]")
@click.pass_obj
def command(obj: tuple[Path, Path], student: str | None, views: int, epochs: int | None) -> None:
    """Compare codings of the teacher's soft scores on students that it trains on the way.

    Needs data and teacher. Prints two tables, of the codings of class probabilities and of boxes.
    """
    params_file, out = obj
    params = load_params(params_file)
    if not (student or params.students):
        raise UserError("no student in params.yaml; add one")
    study = study_codings(student or next(iter(params.students)), params, Paths(out), views, epochs)
    click.echo(f"\n{machine()}\n\nclass probabilities; error of the class loss and its gradient\n")
    click.echo("\n".join(table(study.classes)))
    within = [result for result in study.classes if result.worst("paa") < BOUND]
    click.echo(f"\nless than {BOUND:.0%} at every stage of the student trained as PAA:")
    if within:
        least = min(within, key=lambda result: result.view_bytes)
        click.echo(f"- least bytes here: {least.name}")
        least = min(within, key=lambda result: result.coco_bytes)
        click.echo(f"- least bytes like COCO: {least.name}")
    click.echo("\nboxes, overlap and IoU; error of the whole soft-label loss and its gradient\n")
    click.echo("\n".join(table(study.boxes)))
    file = out / "study.json"
    record = {"machine": machine(), "views": views} | asdict(study)
    file.write_text(json.dumps(record, indent=1))
    file.with_suffix(".png").write_bytes(plot(study.classes, params.labels.scores))
    click.echo(f"wrote {file} and {file.with_suffix('.png')}")


def plot(results: Sequence[Result], scores: Scores) -> bytes:
    """Error over size, by what becomes of the tail; the coding of the settings is marked."""
    points: dict[str, list[tuple[float, float]]] = {}
    for result in results:
        _, _, tail = result.name.partition(", tail: ")
        point = (result.coco_bytes, result.worst("paa"))
        points.setdefault(tail or "no tail", []).append(point)
        if result.name == tailed(Coding(**scores.model_dump()), "class and place").name:
            chosen = point
    return plot_codings(points, BOUND, chosen)


def table(results: Sequence[Result]) -> list[str]:
    """Markdown: a line a coding, the smallest last, with the gradient's error at each stage."""
    stages = list(results[0].errors)
    head = ["coding", "bytes a view", "like COCO", "decode, ms", "loss error, worst", *stages]
    lines = ["| " + " | ".join(head) + " |", "|---" + "|--:" * (len(head) - 1) + "|"]
    for result in sorted(results, key=lambda one: -one.view_bytes):
        cells = [
            result.name,
            f"{result.view_bytes:.0f}",
            f"{result.coco_bytes:.0f}",
            f"{result.decode_ms:.2f}",
            f"{max(error.loss for error in result.errors.values()):.4f}",
            *(f"{result.errors[stage].gradient:.4f}" for stage in stages),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines
