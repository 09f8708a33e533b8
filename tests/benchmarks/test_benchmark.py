"""The benchmark with tiny numbers: that each part compares what it says, and rightly."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from benchmarks.assignment import assign, assign_mmdet, mmdet_head, outputs_of
from benchmarks.measure import Row, alternate, in_own_process, peak_memory, table
from benchmarks.mixture import compare_fits, pad, random_problems, trained_problems
from benchmarks.random_teacher import MODEL, SCALE, RandomTeacher, draw_view, random_objects
from benchmarks.suite import PARTS, QUICK, Bench, run_parts
from benchmarks.synthetic import borrow_project
from benchmarks.teacher_pass import infer, settings_of_part
from pipeline.assignment.mixture import fit_mixtures
from pipeline.project.errors import UserError
from pipeline.store.reader import LabelStore
from pipeline.teacher_pass.run import precompute_labels


def quick(project, part: str):
    """The only figures of a part."""
    bench = Bench(project.params, project.paths, QUICK)
    ((name, figures),) = run_parts(bench, [part])
    assert name == part
    assert all(row.ours > 0 and row.theirs > 0 for row in figures.rows)
    json.dumps([figures.details, [row.plain() for row in figures.rows]])
    return figures


def test_a_row_holds_where_its_ratio_meets_the_bar() -> None:
    assert Row("a", 8, "b", 4, "s").holds is None
    assert Row("a", 8, "b", 4, "s", at_least=2).holds
    assert not Row("a", 8, "b", 4, "s", at_least=2.1).holds
    assert Row("a", 8, "b", 4, "s", at_most=2).holds
    assert not Row("a", 8, "b", 4, "s", at_most=1.9).holds
    assert "| a | 8 | b | 4 | s | 2.000 | <= 1.9 | **missed** |" in table(
        [Row("a", 8, "b", 4, "s", at_most=1.9)]
    )


def test_ways_alternate() -> None:
    calls: list[tuple[str, int]] = []
    ways = {way: lambda n, way=way: calls.append((way, n)) for way in ("one", "two")}
    seconds = alternate(ways, repeats=2, warmup=1)
    assert calls == [(way, n) for n in (-1, 0, 1) for way in ("one", "two")]
    assert {way: len(spent) for way, spent in seconds.items()} == {"one": 2, "two": 2}


def test_a_process_of_its_own_has_a_peak_of_its_own() -> None:
    before = in_own_process(peak_memory)
    ballast = np.ones(2**26)
    assert in_own_process(peak_memory) == pytest.approx(before, rel=0.1)
    assert peak_memory() > ballast.nbytes


def test_real_costs_give_the_fits_of_scikit_learn(labelled) -> None:
    problems = trained_problems(labelled.params, labelled.paths, 150)
    assert len(problems) == 150
    assert all(2 <= len(costs) <= 45 and (np.diff(costs) >= 0).all() for costs in problems)
    agreement = compare_fits(problems)
    assert agreement.different == 0
    assert agreement.equal + agreement.ties == 150
    assert agreement.equal_float32 > 140


def test_a_wrong_fit_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    problems = random_problems(30)
    assert compare_fits(problems).different == 0
    scaled = lambda costs, valid: fit_mixtures(2 * costs, valid)  # noqa: E731
    monkeypatch.setattr("benchmarks.mixture.fit_mixtures", scaled)
    assert compare_fits(problems).different > 0


def test_costs_are_padded() -> None:
    costs, valid = pad([np.float32([1, 2]), np.float32([3, 4, 5])])
    assert valid.tolist() == [[True, True, False], [True, True, True]]
    assert costs[valid].tolist() == [1, 2, 3, 4, 5]


def test_the_timed_assignments_are_the_same() -> None:
    teacher, head = RandomTeacher(seed=0), mmdet_head()
    rng = np.random.default_rng(1)
    views = [draw_view(teacher, random_objects(rng, count), SCALE) for count in (1, 7)]
    outputs = outputs_of(views)
    ours = assign(teacher, views, outputs).objects
    labels, _, boxes, *_ = assign_mmdet(head, views, outputs)
    positive = ours >= 0
    assert positive.any(1).all()
    assert torch.equal(positive.flatten(), labels < MODEL.bbox_head.num_classes)
    chosen = [
        view.sample.gt_instances.bboxes[one[one >= 0]]
        for view, one in zip(views, ours, strict=True)
    ]
    assert torch.equal(torch.cat(chosen), boxes[positive.flatten()])


def test_mixture_rows(labelled) -> None:
    speed, double, single = quick(labelled, "mixture").rows
    assert speed.against == "scikit-learn"
    assert speed.at_least == 80
    assert double.ours == double.theirs == QUICK.fits
    assert single.theirs == QUICK.fits


def test_assignment_rows(labelled) -> None:
    rows = quick(labelled, "assignment").rows
    assert [row.unit for row in rows] == ["views/s"] * 2 + ["us/object", "us/prior"]
    assert "22,400 priors" in rows[0].name


def test_pass_rows(labelled, tmp_path) -> None:
    figures = quick(labelled, "pass")
    views = 4 * len(labelled.params.views.scales) * len(labelled.params.views.flips)
    assert figures.details["views"] == views
    assert figures.details["report"]["views"] == views
    assert [row.at_least for row in figures.rows] == [0.9, None]
    borrowed = borrow_project(labelled.paths, tmp_path / "borrowed", images=4)
    assert infer(labelled.params, borrowed) == views
    # The project's own store was not touched.
    LabelStore(labelled.paths.labels).require_complete()


def test_a_bucket_with_a_batch_size_that_no_measured_view_is_in(labelled, tmp_path) -> None:
    buckets = LabelStore(labelled.paths.labels).layout.buckets
    sizes = {"bucket_batch_sizes": {bucket.name: 2 for bucket in buckets}}
    labels = labelled.params.labels.model_copy(update=sizes)
    params = labelled.params.model_copy(update={"labels": labels})
    borrowed = borrow_project(labelled.paths, tmp_path / "borrowed", images=1)
    with pytest.raises(UserError, match="no view is padded to"):
        precompute_labels(params, borrowed, replace=False)
    report = precompute_labels(settings_of_part(params, borrowed), borrowed, replace=False)
    assert report["images"] == 1


def test_cluster_rows(labelled) -> None:
    figures = quick(labelled, "cluster")
    reports = figures.details["reports"]
    views = 4 * len(labelled.params.views.scales) * len(labelled.params.views.flips)
    assert [report["views"] for report in reports[1] + reports[2]] == [views, views]
    assert figures.rows[0].at_least == 1.6


def test_steps_rows(labelled) -> None:
    figures = quick(labelled, "steps")
    assert {row.against for row in figures.rows} == {
        "paa (mmdet)",
        "paa (batched)",
        "online LAD (mmdet)",
        "online LAD (batched)",
        "constant labels",
        "constant solad",
    }
    seconds = figures.details["seconds"]
    assert set(seconds) == {row.against for row in figures.rows} | {"cached lad", "cached solad"}
    assert all(len(spent) == QUICK.steps for spent in seconds.values())


def test_loader_rows(labelled) -> None:
    figures = quick(labelled, "loader")
    assert [row.unit for row in figures.rows] == ["ms/item"] * 2 * len(QUICK.workers) + ["MiB"]
    assert set(figures.details["seconds"][1]) == {"none", "lad", "solad"}


def test_growth_rows(labelled) -> None:
    figures = quick(labelled, "growth")
    details = figures.details
    assert {n: report["views"] for n, report in details["images"].items()} == {8: 8, 16: 16}
    sizes = [details["classes"][n]["bytes_per_view_by_array"]["cls_scores"] for n in (1, 10)]
    assert sizes[0] < sizes[1]
    assert {row.unit for row in figures.rows} >= {"MiB peak", "ms/view", "bytes/view"}


def test_memory_rows(labelled) -> None:
    peaks = quick(labelled, "memory").details["bytes"]
    assert peaks["cached lad"] < peaks["online LAD (mmdet)"]


def test_what_needs_a_project_is_skipped_without(tmp_path) -> None:
    from stages.bench import command

    arguments = ["--quick", *(f"--only={part}" for part in ("reads", "steps", "pass", "memory"))]
    obj = (tmp_path / "params.yaml", tmp_path / "out")
    result = CliRunner().invoke(command, arguments, obj=obj, catch_exceptions=False)
    assert "| reads of a random view: assignment |" in result.output
    assert result.output.count("skipped: there is no") == 3
    record = json.loads((tmp_path / "out/bench.json").read_text())
    assert [one["part"] for one in record["parts"]] == ["reads", "steps", "pass", "memory"]
    assert record["machine"]["scikit-learn"]
    assert (tmp_path / "out/bench.md").read_text().count("## ") == 4


def test_the_parts_are_known() -> None:
    assert set(PARTS) == {
        *("reads", "steps", "mixture", "assignment", "pass", "cluster", "loader", "growth"),
        "memory",
    }
