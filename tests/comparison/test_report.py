import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from pipeline.colearning.settings import CoLearning
from pipeline.comparison.compare import (
    BreakEven,
    Comparison,
    Group,
    break_even,
    read_comparison,
    step_ratios,
)
from pipeline.comparison.plots import smooth
from pipeline.comparison.records import Model, Run, TeacherPass
from pipeline.comparison.report import markdown, write_comparison
from pipeline.project.errors import UserError
from pipeline.project.paths import Paths
from pipeline.training.settings import Training
from stages.compare import command
from tests.comparison.records import LABELS, METRICS, save, training

PASS = TeacherPass(400, 200.0, 2.0, 98_000, 245.0)


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    """Results of a teacher, a student that learns alone (`plain`) and a LAD student (`cached`)."""
    paths = Paths(tmp_path / "out")
    teacher = training("teacher", "own", config="configs/big.py", parameters=30_000_000)
    teacher["assigner"] = "mmdet"
    save(paths.model("teacher") / "training.json", teacher)
    save(paths.model("plain") / "training.json", training("plain", "own"))
    cached = training("cached", "lad", seconds_per_step=0.4, total_seconds=59.94)
    save(paths.model("cached") / "training.json", cached)
    for name in ("teacher", "plain", "cached"):
        save(paths.metrics(name), METRICS)
    save(paths.labels_report, LABELS)
    return paths


def rows_of(paths: Paths, file: str) -> list[dict[str, str]]:
    """The rows of a CSV file of the comparison."""
    with (paths.compare / file).open() as stream:
        return list(csv.DictReader(stream))


def model(name: str, method: str, **changes: object) -> Model:
    content = training(name, method, **changes)
    run = Run(**{n: content[n] for n in Run.__dataclass_fields__})
    about = {n: content[n] for n in ("method", "labels", "assigner", "config")}
    return Model(name, **about, metrics=METRICS, run=run)


def test_break_even_of_one_student():
    # 8 epochs of 100 images ask for 800 views at 0.5 s: 400 s; the pass took 200 s.
    assert break_even([model("a", "lad")], PASS) == BreakEven(400.0, students=0.5, epochs=4.0)


def test_break_even_is_the_mean_over_cached_students():
    students = [
        model("a", "lad", epochs=2),
        model("b", "lad", epochs=6),
        model("c", "own", epochs=100),
    ]
    # 200 and 600 views: on average 400, as many as the pass has.
    assert break_even(students, PASS) == BreakEven(200.0, students=1.0, epochs=4.0)


def test_no_break_even_without_cached_students():
    assert break_even([model("c", "own")], PASS) is None


def test_an_online_student_pays_nothing_back():
    online = model("o", "lad", labels="online")
    assert break_even([online], PASS) is None
    assert step_ratios([online, model("plain", "own")]) == []


def test_the_table_says_where_labels_come_from():
    students = [
        model("a", "lad", labels="online", assigner="mmdet"),
        model("b", "solad", labels="online"),
        model("c", "own", assigner="mmdet"),
    ]
    groups = [Group(student.name, (student,)) for student in students]
    rows = markdown(Comparison(students, groups, PASS, None, [])).splitlines()[2:5]
    assert [row.split(" | ")[2] for row in rows] == [
        "online (mmdet)",
        "online (batched)",
        "own (mmdet)",
    ]


def test_step_ratio_needs_the_same_config_and_batch_size():
    students = [
        model("fast", "lad", seconds_per_step=0.4),
        model("other-batch", "lad", batch_size=4),
        model("other-config", "lad", config="configs/other.py"),
        model("plain", "own", seconds_per_step=0.5),
        model("again", "own", seconds_per_step=0.6),
    ]
    (ratio,) = step_ratios(students)
    assert (ratio.student, ratio.own) == ("fast", "plain")
    assert ratio.ratio == pytest.approx(0.8)


def test_smooth():
    np.testing.assert_allclose(smooth([1, 2, 3, 4, 8], 3), [1.5, 2, 3, 5, 6])
    np.testing.assert_allclose(smooth([1, 5], 1), [1, 5])


def test_table(paths: Paths):
    table = write_comparison(["plain", "cached"], paths)
    assert table == (paths.compare / "table.md").read_text()
    assert table.splitlines() == [
        "| name | method | labels | config | parameters (M) | AP | AP50 | AP75 | s/step "
        "| total time |",
        "|---|---|---|---|--:|--:|--:|--:|--:|--:|",
        "| teacher | own | own (mmdet) | big | 30.00 "
        "| 0.412 | 0.600 | 0.450 | 0.500 | 1 h 01 min |",
        "| plain | own | own (batched) | small | 1.23 "
        "| 0.412 | 0.600 | 0.450 | 0.500 | 1 h 01 min |",
        "| cached | lad | cached | small | 1.23 | 0.412 | 0.600 | 0.450 | 0.400 | 59.9 s |",
        "",
        "Teacher pass: 400 views in 3 min 20 s (2.0 views/s); "
        "the label store takes 98.0 kB, 245 bytes a view.",
        "",
        "A LAD student that asks the teacher online pays for epochs * images views, each at the "
        "pass's seconds / views: about 6 min 40 s a student here (mean of the cached students). "
        "The pass is paid back after pass seconds / saved seconds = 0.50 students, "
        "or 4.0 epochs of one student.",
        "",
        "Steps of students with the same config and batch size:",
        "",
        "- cached takes 0.80 of the time of plain (0.400 against 0.500 s/step)",
    ]


def test_json_has_the_same_numbers(paths: Paths):
    write_comparison(["plain", "cached"], paths)
    content = json.loads((paths.compare / "table.json").read_text())
    assert [row["name"] for row in content["models"]] == ["teacher", "plain", "cached"]
    row = content["models"][2]
    assert row["AP"] == 0.41234
    assert row["APs"] is None
    assert row["APm"] is None
    assert row["seconds_per_step"] == 0.4
    assert content["teacher_pass"]["views"] == 400
    assert content["break_even"]["students"] == 0.5
    assert content["step_ratios"][0]["ratio"] == pytest.approx(0.8)


def test_undefined_metric_is_a_dash(paths: Paths):
    save(paths.metrics("cached"), METRICS | {"AP": -1, "AP50": None})
    table = write_comparison(["cached"], paths)
    assert "| cached | lad | cached | small | 1.23 | - | - | 0.450 |" in table


def test_teacher_with_own_checkpoint(paths: Paths):
    own = {"name": "teacher", "method": "own", "assigner": "batched", "config": "configs/big.py"}
    save(paths.model("teacher") / "training.json", own | {"checkpoint": "mine.pth"})
    table = write_comparison(["cached"], paths)
    assert "| teacher | own | - | big | - | 0.412 | 0.600 | 0.450 | - | - |" in table
    row = json.loads((paths.compare / "table.json").read_text())["models"][0]
    assert row["parameters"] is None


def test_no_students(paths: Paths):
    comparison = read_comparison([], paths)
    assert [m.name for m in comparison.models] == ["teacher"]
    assert "paid back" not in markdown(comparison)
    write_comparison([], paths)
    assert {row["student"] for row in rows_of(paths, "curves.csv")} == {"teacher"}
    assert (paths.compare / "curves.png").exists()


@pytest.mark.parametrize(
    ("missing", "command"),
    [
        ("students/cached/training.json", "lad student cached` or `lad online cached"),
        ("metrics/cached.json", "lad evaluate cached"),
        ("teacher/training.json", "lad teacher"),
        ("metrics/teacher.json", "lad evaluate teacher"),
        ("labels.json", "lad labels"),
    ],
)
def test_missing_results_name_the_command(paths: Paths, missing: str, command: str):
    (paths.root / missing).unlink()
    with pytest.raises(UserError) as error:
        write_comparison(["cached"], paths)
    assert str(error.value) == f"{paths.root / missing} is missing; run `{command}`"
    assert not paths.compare.exists()


def test_damaged_results_name_the_command(paths: Paths):
    paths.metrics("cached").write_text('{"AP": 0.')
    with pytest.raises(UserError, match=r"cached\.json is not valid JSON .*`lad evaluate cached`"):
        write_comparison(["cached"], paths)
    save(paths.metrics("cached"), {"AP": 0.4})
    with pytest.raises(UserError, match=r"cached\.json has no AP50, .*`lad evaluate cached`"):
        write_comparison(["cached"], paths)


def test_curves(paths: Paths):
    write_comparison(["plain", "cached"], paths)
    rows = rows_of(paths, "curves.csv")
    assert [row["student"] for row in rows] == [
        n for n in ("plain", "cached", "teacher") for _ in "123"
    ]
    assert rows[4] == {"student": "cached", "step": "2", "loss": "2.0"}
    with Image.open(paths.compare / "curves.png") as image:
        assert image.format == "PNG"
        assert min(image.size) >= 400
        assert len(np.unique(np.asarray(image.convert("L")))) > 20
    assert {file.name for file in paths.compare.iterdir()} == {
        "table.md",
        "table.json",
        "curves.csv",
        "curves.png",
        "ap.csv",
        "ap.png",
        "time.csv",
        "time.png",
    }


def test_a_long_curve_has_200_points_of_its_running_mean(paths: Paths):
    """The mean over steps as far before as after it is what a straight line has at a step."""
    steps = list(range(1, 7331))
    noise = [0.5, -0.5] * 3665
    losses = [9 - step / 1000 + one for step, one in zip(steps, noise, strict=True)]
    save(
        paths.model("cached") / "training.json",
        training("cached", "lad", curves={"step": steps, "loss": losses}),
    )
    write_comparison(["cached"], paths)
    rows = [row for row in rows_of(paths, "curves.csv") if row["student"] == "cached"]
    assert len(rows) == 200
    found = np.array([int(row["step"]) for row in rows])
    assert (found[0], found[-1]) == (1, 7330)
    assert set(np.diff(found)) == {36, 37}
    means = np.array([float(row["loss"]) for row in rows])
    np.testing.assert_allclose(means[4:-4], (9 - found / 1000)[4:-4], atol=0.01)


def test_ap_and_time_of_each_model(paths: Paths):
    """Of two seeds both, and nothing of what was not measured, or not trained here."""
    own = {"name": "teacher", "method": "own", "assigner": "batched", "config": "configs/big.py"}
    save(paths.model("teacher") / "training.json", own | {"checkpoint": "mine.pth"})
    save(paths.model("again") / "training.json", training("again", "lad", {"seed": 1}))
    save(paths.metrics("again"), {"AP": 0.25, "AP50": 0.5, "AP75": 0.125})
    save(paths.metrics("plain"), {"AP": -1, "AP50": None, "AP75": 0.5})
    write_comparison(["cached", "again", "plain"], paths)
    assert [tuple(row.values()) for row in rows_of(paths, "ap.csv")] == [
        ("cached", "AP", "0.41234"),
        ("cached", "AP50", "0.6"),
        ("cached", "AP75", "0.45"),
        ("again", "AP", "0.25"),
        ("again", "AP50", "0.5"),
        ("again", "AP75", "0.125"),
        ("plain", "AP75", "0.5"),
        ("teacher", "AP", "0.41234"),
        ("teacher", "AP50", "0.6"),
        ("teacher", "AP75", "0.45"),
    ]
    assert rows_of(paths, "time.csv") == [
        {"student": "cached", "minutes": "0.999", "AP": "0.41234"},
        {"student": "again", "minutes": "61.667", "AP": "0.25"},
    ]
    assert "teacher" not in (paths.compare / "curves.csv").read_text()


def test_seeds_are_one_row(paths: Paths):
    for name, own, ap in (
        ("cached", {}, 0.3),
        ("again", {"seed": 1, "workers": 0, "checkpoint_every": 2}, 0.34),
        ("other", {"seed": 1, "epochs": 3}, 0.5),
    ):
        record = training(name, "lad", own, total_seconds=60.0)
        assert record["settings"]["training"] == Training(**own).model_dump()
        save(paths.model(name) / "training.json", record)
        save(paths.metrics(name), METRICS | {"AP": ap})
    table = write_comparison(["cached", "again", "other"], paths)
    assert (
        "| cached (2 seeds) | lad | cached | small | 1.23 | 0.320 ± 0.028 | 0.600 | 0.450 " in table
    )
    assert "| other | lad | cached | small | 1.23 | 0.500 |" in table
    assert "standard deviation" in table
    content = json.loads((paths.compare / "table.json").read_text())
    assert [row["models"] for row in content["rows"]] == [
        ["teacher"],
        ["cached", "again"],
        ["other"],
    ]
    assert content["rows"][1]["mean"]["AP"] == pytest.approx(0.32)
    assert content["rows"][1]["spread"]["AP"] == pytest.approx(np.std([0.3, 0.34], ddof=1))
    assert [model["AP"] for model in content["models"][1:]] == [0.3, 0.34, 0.5]


def test_a_store_that_came_without_its_report(paths: Paths):
    save(paths.labels_report, LABELS | {"seconds": None, "views_per_second": None})
    table = write_comparison(["cached"], paths)
    assert "Teacher pass: 400 views; the label store takes 98.0 kB" in table
    assert "= 0.50 students" in table


PAIR = ["pair.big", "pair.small"]
"""Two networks that learn together."""


def pair_settings(name: str, **training: object) -> dict:
    """What the record of a network of the pair says of its settings."""
    networks = [{"name": one, "config": "configs/small.py"} for one in ("big", "small")]
    settings = CoLearning.model_validate({"networks": networks})
    return settings.model_dump(mode="json", exclude={"training"}) | {
        "training": Training(**training).model_dump(mode="json"),
        "network": name.removeprefix("pair."),
    }


def test_networks_that_learn_together(paths: Paths):
    for name, taught in (("pair.big", [1.0, 0.8, 0.6]), ("pair.small", [0.0, 0.2, 0.4])):
        content = training(name, "colearn", labels="shared", seconds_per_step=0.9)
        content["settings"] = pair_settings(name)
        content["curves"]["taught"] = taught
        save(paths.model(name) / "training.json", content)
        save(paths.metrics(name), METRICS)
    table = write_comparison(["cached", *PAIR], paths)
    assert "| pair.big | colearn | shared (batched) | small | 1.23 | 0.412 |" in table
    assert "| pair.small | colearn | shared (batched) | small | 1.23 | 0.412 |" in table
    # They ask no teacher: the pass is paid back by the LAD student alone.
    assert "0.50 students" in table
    assert "pair.big takes" not in table
    with Image.open(paths.compare / "taught.png") as image:
        assert len(np.unique(np.asarray(image.convert("L")))) > 20
    rows = (paths.compare / "curves.csv").read_text()
    assert "pair.small,3,1.0" in rows


def test_networks_that_learn_together_need_no_teacher(paths: Paths):
    shutil.rmtree(paths.model("teacher"))
    paths.labels_report.unlink()
    for name in PAIR:
        content = training(name, "colearn", labels="shared", settings=pair_settings(name))
        save(paths.model(name) / "training.json", content)
        save(paths.metrics(name), METRICS)
    table = write_comparison(PAIR, paths)
    assert [line.split("|")[1].strip() for line in table.splitlines()[2:]] == PAIR
    content = json.loads((paths.compare / "table.json").read_text())
    assert content["teacher_pass"] is content["break_even"] is None
    assert (paths.compare / "time.png").exists()


def test_a_network_that_was_not_trained_names_the_command(paths: Paths):
    with pytest.raises(UserError, match="pair.big.* is missing; run `lad colearn pair`"):
        write_comparison(["cached", *PAIR], paths)


def test_command_prints_the_table(paths: Paths, tmp_path: Path):
    """Of students, online students and networks that learn together, in this order.

    Where labels come from makes two rows of models with the same settings.
    """
    records = {"asking": training("asking", "lad", labels="online")} | {
        name: training(name, "colearn", labels="shared", settings=pair_settings(name))
        for name in PAIR
    }
    for name, record in records.items():
        save(paths.model(name) / "training.json", record)
        save(paths.metrics(name), METRICS)
    small = {"config": "configs/small.py", "method": "lad"}
    networks = [{"name": name, "config": "configs/small.py"} for name in ("big", "small")]
    params = {
        "data": {"source": "pipeline/ingest/digits.py"},
        "views": {"scales": [[256, 192]]},
        "teacher": {"config": "configs/big.py"},
        "students": {"cached": small},
        "online": {"asking": small},
        "colearn": {"pair": {"networks": networks}},
        "evaluation": {"scale": [256, 192]},
    }
    params_file = tmp_path / "params.yaml"
    params_file.write_text(json.dumps(params))  # JSON is YAML too.
    result = CliRunner().invoke(
        command, obj=(params_file, paths.root), args=[], catch_exceptions=False
    )
    assert result.exit_code == 0
    assert result.output == (paths.compare / "table.md").read_text()
    content = json.loads((paths.compare / "table.json").read_text())
    names = ["teacher", "cached", "asking", *PAIR]
    assert [model["name"] for model in content["models"]] == names
    assert [row["models"] for row in content["rows"]] == [[name] for name in names]
