"""`python -m studies`: what codings of the teacher's soft scores cost, and how far they mislead."""

import json
from dataclasses import asdict
from pathlib import Path

import click

from benchmarks.command_line import importing_mmdet, project_options, run
from pipeline.project.errors import UserError
from pipeline.project.paths import Paths
from pipeline.store.coding import SoftSettings
from stages.params import entry, load_params

BOUND = 0.01
"""Of the gradient's error, for the coding that is taken."""


@click.command()
@project_options
@click.option("--student", help="Whose config and training to use.  [the first one]")
@click.option("--views", default=24, show_default=True, help="Views to measure.")
@click.option("--epochs", type=click.IntRange(min=1), help="Of training.  [the student's]")
def command(
    params_file: Path, out: Path, student: str | None, views: int, epochs: int | None
) -> None:
    """Compare codings of the teacher's soft scores on students that it trains on the way.

    Needs data and teacher. Prints three tables: of codings of class probabilities and of boxes, for
    soft labels, and of what stores keep for bckd.
    """
    params = load_params(params_file)
    if not (student or params.students):
        raise UserError("no student in params.yaml; add one")
    own = entry("students", params.students, student or next(iter(params.students)))
    training = own.training.over(params.training)
    training = training.model_copy(update={"amp": False, "epochs": epochs or training.epochs})
    labels = params.labels
    with importing_mmdet():
        from pipeline.project.machine import machine
        from studies.coding_study import result_table, study_codings
        from studies.codings import with_tail
        from studies.plot import plot_codings

    soft = SoftSettings(scores=labels.scores, min_iou=labels.min_iou, min_score=labels.min_score)
    study = study_codings(own.config, training, soft, params.views, Paths(out), views)

    click.echo(f"\n{machine()}\n\nclass probabilities; error of the class loss and its gradient\n")
    click.echo("\n".join(result_table(study.classes)))
    within = [result for result in study.classes if result.worst("own") < BOUND]
    click.echo(f"\nless than {BOUND:.0%} at every stage of the student trained as its head alone:")
    if within:
        least = min(within, key=lambda result: result.view_bytes)
        click.echo(f"- least bytes here: {least.name}")
        least = min(within, key=lambda result: result.coco_bytes)
        click.echo(f"- least bytes like COCO: {least.name}")
    click.echo("\nboxes and their IoUs; error of the whole soft-label loss and its gradient\n")
    click.echo("\n".join(result_table(study.boxes)))
    click.echo("\nall that a store keeps, for bckd; error of its losses and their gradient\n")
    click.echo("\n".join(result_table(study.stores)))
    file = out / "study.json"
    record = {"machine": machine(), "views": views} | asdict(study)
    file.write_text(json.dumps(record, indent=1))

    points: dict[str, list[tuple[float, float]]] = {}
    for result in study.classes:
        _, _, tail = result.name.partition(", tail: ")
        point = (result.coco_bytes, result.worst("own"))
        points.setdefault(tail or "no tail", []).append(point)
        if result.name == with_tail(labels.scores, "class and place").name:
            chosen = point
    file.with_suffix(".png").write_bytes(plot_codings(points, BOUND, chosen))
    click.echo(f"wrote {file} and {file.with_suffix('.png')}")


if __name__ == "__main__":
    run(command, "studies")
