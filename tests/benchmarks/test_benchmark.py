"""The benchmark with tiny numbers: that each part compares what it says, and rightly."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from benchmarks.assignment import assign, assign_mmdet, join_outputs, mmdet_head
from benchmarks.measure import Ratio, alternate, in_own_process, peak_memory, ratio_table
from benchmarks.mixture import compare_fits, pad_costs, random_costs, trained_costs
from benchmarks.random_teacher import MODEL, SCALE, RandomTeacher, draw_view, random_objects
from benchmarks.suite import PARTS, QUICK, Bench, run_parts
from benchmarks.synthetic import borrow_project
from benchmarks.teacher_pass import infer, pass_over_part
from pipeline.assignment.mixture import fit_mixtures
from pipeline.project.errors import UserError
from pipeline.project.paths import Paths
from pipeline.store.reader import LabelStore
from pipeline.teacher_pass.run import fill_store
from tests.conftest import ROOT

pytestmark = pytest.mark.slow


def quick(project, part: str):
    """The figures of a part, its first ones and the others."""
    bench = Bench(project.params, project.paths, QUICK)
    names, found = zip(*run_parts(bench, [part]), strict=True)
    assert set(names) == {part}
    for figures in found:
        assert all(ratio.ours > 0 and ratio.theirs > 0 for ratio in figures.ratios)
        json.dumps([figures.details, [ratio.plain() for ratio in figures.ratios]])
    return found


def run_benchmarks(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_a_ratio_holds_where_it_meets_the_bar() -> None:
    assert Ratio("a", 8, "b", 4, "s").holds is None
    assert Ratio("a", 8, "b", 4, "s", at_least=2).holds
    assert not Ratio("a", 8, "b", 4, "s", at_least=2.1).holds
    assert Ratio("a", 8, "b", 4, "s", at_most=2).holds
    assert not Ratio("a", 8, "b", 4, "s", at_most=1.9).holds
    assert "| a | 8 | b | 4 | s | 2.000 | <= 1.9 | **missed** |" in ratio_table(
        [Ratio("a", 8, "b", 4, "s", at_most=1.9)]
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
    costs = trained_costs(labelled.params.views, labelled.paths, 150)
    assert len(costs) == 150
    assert all(2 <= len(own) <= 45 and (np.diff(own) >= 0).all() for own in costs)
    agreement = compare_fits(costs)
    assert agreement.different == 0
    assert agreement.equal + agreement.ties == 150
    assert agreement.equal_float32 > 140


def test_a_wrong_fit_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    costs = random_costs(30)
    assert compare_fits(costs).different == 0
    scaled = lambda costs, valid: fit_mixtures(2 * costs, valid)  # noqa: E731
    monkeypatch.setattr("benchmarks.mixture.fit_mixtures", scaled)
    assert compare_fits(costs).different > 0


def test_costs_are_padded() -> None:
    costs, valid = pad_costs([np.float32([1, 2]), np.float32([3, 4, 5])])
    assert valid.tolist() == [[True, True, False], [True, True, True]]
    assert costs[valid].tolist() == [1, 2, 3, 4, 5]


def test_the_timed_assignments_are_the_same() -> None:
    teacher, head = RandomTeacher(seed=0), mmdet_head()
    rng = np.random.default_rng(1)
    views = [draw_view(teacher, random_objects(rng, count), SCALE) for count in (1, 7)]
    outputs = join_outputs(views)
    ours = assign(teacher, views, outputs).assigned_gt_inds
    labels, _, boxes, *_ = assign_mmdet(head, views, outputs)
    positive = ours >= 0
    assert positive.any(1).all()
    assert torch.equal(positive.flatten(), labels < MODEL.bbox_head.num_classes)
    chosen = [
        view.sample.gt_instances.bboxes[one[one >= 0]]
        for view, one in zip(views, ours, strict=True)
    ]
    assert torch.equal(torch.cat(chosen), boxes[positive.flatten()])


def test_mixture_ratios(labelled) -> None:
    (figures,) = quick(labelled, "mixture")
    speed, double, single = figures.ratios
    assert speed.against == "scikit-learn"
    assert speed.at_least == 80
    assert double.ours == double.theirs == QUICK.fits
    assert single.theirs == QUICK.fits


def test_assignment_ratios(labelled) -> None:
    (figures,) = quick(labelled, "assignment")
    ratios = figures.ratios
    assert [ratio.unit for ratio in ratios] == ["views/s"] * 2 + ["us/object", "us/prior"]
    assert "22,400 priors" in ratios[0].name


def test_pass_ratios(labelled, tmp_path) -> None:
    (figures,) = quick(labelled, "pass")
    views = 4 * len(labelled.params.views.scales) * len(labelled.params.views.flips)
    assert figures.details["views"] == views
    assert figures.details["report"]["views"] == views
    assert [ratio.at_least for ratio in figures.ratios] == [0.9, None]
    borrowed = borrow_project(labelled.paths, tmp_path / "borrowed", images=4)
    params = labelled.params
    assert infer(params.teacher_pass, params.views, borrowed) == views
    # The project's own store was not touched.
    LabelStore(labelled.paths.labels).require_complete()


def test_heads_ratios(labelled) -> None:
    ratios = [ratio for figures in quick(labelled, "heads") for ratio in figures.ratios]
    assert [ratio.name.split("_")[0] for ratio in ratios] == [
        f"teacher pass, {head}" for head in ("gfl", "tood", "rtmdet")
    ]
    assert {ratio.at_least for ratio in ratios} == {0.8}


def test_a_bucket_with_a_batch_size_that_no_measured_view_is_in(labelled, tmp_path) -> None:
    buckets = LabelStore(labelled.paths.labels).layout.buckets
    sizes = {"bucket_batch_sizes": {bucket.name: 2 for bucket in buckets}}
    params = labelled.params
    every = params.teacher_pass.model_copy(update=sizes)
    borrowed = borrow_project(labelled.paths, tmp_path / "borrowed", images=1)
    with pytest.raises(UserError, match="no view is padded to"):
        fill_store(params.labels, every, params.views, borrowed, replace=False)
    some = pass_over_part(every, params.views, borrowed)
    report = fill_store(params.labels, some, params.views, borrowed, replace=False)
    assert report["images"] == 1


def test_cluster_ratios(labelled) -> None:
    (figures,) = quick(labelled, "cluster")
    reports = figures.details["reports"]
    views = 4 * len(labelled.params.views.scales) * len(labelled.params.views.flips)
    assert [report["views"] for report in reports[1] + reports[2]] == [views, views]
    assert figures.ratios[0].at_least == 1.6


def test_steps_ratios(labelled) -> None:
    figures, bckd = quick(labelled, "steps")
    assert {ratio.against for ratio in figures.ratios} == {
        "paa (mmdet)",
        "paa (batched)",
        "online LAD (mmdet)",
        "online LAD (batched)",
        "constant labels",
        "constant solad",
    }
    seconds = figures.details["seconds"]
    assert set(seconds) == {ratio.against for ratio in figures.ratios} | {
        "cached lad",
        "cached solad",
    }
    assert all(len(spent) == QUICK.steps for spent in seconds.values())
    (ratio,) = bckd.ratios
    assert (ratio.name, ratio.against) == ("step, cached bckd", "constant bckd")
    assert ratio.at_most == 1.1


def test_loader_ratios(labelled) -> None:
    (figures,) = quick(labelled, "loader")
    assert [ratio.unit for ratio in figures.ratios] == ["ms/item"] * 2 * len(QUICK.workers) + [
        "MiB"
    ]
    assert set(figures.details["seconds"][1]) == {"none", "lad", "solad"}


def test_growth_ratios(labelled) -> None:
    (figures,) = quick(labelled, "growth")
    details = figures.details
    assert {n: report["views"] for n, report in details["images"].items()} == {8: 8, 16: 16}
    sizes = [details["classes"][n]["bytes_per_view_by_array"]["cls_scores"] for n in (1, 10)]
    assert sizes[0] < sizes[1]
    assert {ratio.unit for ratio in figures.ratios} >= {"MiB peak", "ms/view", "bytes/view"}


def test_what_needs_a_project_is_skipped_without(tmp_path) -> None:
    ended = run_benchmarks(
        f"--params={tmp_path / 'params.yaml'}",
        f"--out={tmp_path / 'out'}",
        "--quick",
        *(f"--only={part}" for part in ("reads", "steps", "pass", "memory")),
    )
    assert ended.returncode == 0, ended.stderr
    assert "| reads of a random view: assignment |" in ended.stdout
    assert ended.stdout.count("skipped: there is no") == 3
    record = json.loads((tmp_path / "out/bench.json").read_text())
    assert [one["part"] for one in record["parts"]] == ["reads", "steps", "pass", "memory"]
    assert record["machine"]["scikit-learn"]
    assert (tmp_path / "out/bench.md").read_text().count("## ") == 4


def test_a_mistake_ends_with_a_message(tmp_path) -> None:
    params = tmp_path / "params.yaml"
    params.write_text("views: [")
    ended = run_benchmarks(f"--params={params}", f"--out={tmp_path / 'out'}")
    assert ended.returncode == 1
    assert f"Error: {params} is not valid YAML" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_part_that_is_none(tmp_path) -> None:
    with pytest.raises(UserError, match="no part 'read'.*did you mean 'reads'"):
        next(run_parts(Bench(None, Paths(tmp_path), QUICK), ["read"]))


def test_the_parts_are_known() -> None:
    assert set(PARTS) == {
        *("reads", "steps", "mixture", "assignment", "pass", "cluster", "loader", "growth"),
        *("memory", "speedups", "heads", "data", "sharing"),
    }
