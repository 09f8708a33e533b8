"""The settings: what is read from params.yaml, and what a user is told of a mistake in it."""

import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.project.errors import UserError
from stages.params import Params, entry, load_params
from tests.conftest import ROOT

GOOD: dict[str, Any] = {
    "data": {"source": "pipeline/ingest/digits.py", "digits": {"seed": 3}},
    "views": {"scales": [[256, 192]]},
    "teacher": {"config": "configs/big.py"},
    "training": {"epochs": 4, "lr": 0.01},
    "students": {
        "first": {"config": "configs/small.py", "method": "lad"},
        "second": {
            "config": "configs/small.py",
            "method": "own",
            "training": {"epochs": 2, "batch_size": 16},
        },
    },
    "evaluation": {"scale": [256, 192]},
}


def load(tmp_path: Path, content: object) -> Params:
    file = tmp_path / "params.yaml"
    file.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return load_params(file)


def message(tmp_path: Path, content: object) -> str:
    with pytest.raises(UserError) as error:
        load(tmp_path, content)
    return str(error.value).replace(str(tmp_path / "params.yaml"), "FILE")


def changed(place: str, value: object) -> dict[str, Any]:
    """The good settings with another value at `place`."""
    content = deepcopy(GOOD)
    *sections, name = place.split("/")
    section = content
    for part in sections:
        section = section.setdefault(part, {})
    section[name] = value
    return content


def test_good_settings(tmp_path: Path):
    params = load(tmp_path, GOOD)
    assert params.data.digits.seed == 3
    assert params.views.scales == [(256, 192)]
    assert params.views.flips == ["none", "horizontal"]
    assert list(params.students) == ["first", "second"]


@pytest.mark.parametrize("file", sorted(ROOT.glob("configs/params/*.yaml")), ids=lambda f: f.stem)
def test_presets_are_good(file: Path):
    params = load_params(file)
    students = (*params.students.values(), *params.online.values())
    configs = [params.teacher.config, *(student.config for student in students)]
    assert all((ROOT / config).is_file() for config in configs)


def test_students_are_optional(tmp_path: Path):
    content = deepcopy(GOOD)
    del content["students"]
    params = load(tmp_path, content)
    assert params.students == params.online == params.colearn == {}


def test_number_in_scientific_notation(tmp_path: Path):
    # YAML 1.1 reads 1e-3, without a dot, as text.
    text = yaml.safe_dump(GOOD).replace("lr: 0.01", "lr: 1e-3")
    assert load(tmp_path, text).training.lr == 0.001


@pytest.mark.parametrize(
    ("place", "where", "meant"),
    [
        ("trainning", "trainning", "training"),
        ("teacher/chekpoint", "teacher.chekpoint", "checkpoint"),
        ("data/digits/sed", "data.digits.sed", "seed"),
        ("data/val/image", "data.val.image", "images"),
        ("views/sampled/cuont", "views.sampled.cuont", "count"),
        ("views/sampled/crop/sise", "views.sampled.crop.sise", "size"),
        ("teacher/training/epoch", "teacher.training.epoch", "epochs"),
        ("students/first/metod", "students.first.metod", "method"),
        ("students/first/training/epoch", "students.first.training.epoch", "epochs"),
        ("online/first/metod", "online.first.metod", "method"),
        ("online/first/training/epoch", "online.first.training.epoch", "epochs"),
        ("colearn/pair/critrion", "colearn.pair.critrion", "criterion"),
    ],
)
def test_typo_says_what_was_meant(tmp_path: Path, place: str, where: str, meant: str):
    lines = message(tmp_path, changed(place, {})).splitlines()
    assert f"FILE: {where}: there is no such setting (did you mean {meant!r}?)" in lines


def test_unknown_setting_like_no_other(tmp_path: Path):
    assert message(tmp_path, changed("xyz", 1)) == "FILE: xyz: there is no such setting"


@pytest.mark.parametrize(
    ("place", "value", "where"),
    [
        ("training/epochs", 0, "training.epochs"),
        ("training/lr", "fast", "training.lr"),
        ("data/problems", "ignore", "data.problems"),
        ("views/scales", [], "views.scales"),
        ("views/scales", [[256, 192], [256, 192]], "views.scales"),
        ("evaluation/scale", [256, 192, 3], "evaluation.scale"),
        ("students/first/method", "ladd", "students.first.method"),
        ("students/first/training/batch_size", -1, "students.first.training.batch_size"),
        ("training/seed", -1, "training.seed"),
        ("training/seed", 2**32, "training.seed"),
        ("data/digits/seed", -1, "data.digits.seed"),
        ("students/first", None, "students.first"),
    ],
)
def test_wrong_value_names_place_and_value(tmp_path: Path, place: str, value: object, where: str):
    (line,) = message(tmp_path, changed(place, value)).splitlines()
    assert line.startswith(f"FILE: {where}: ")
    assert line.endswith(f", got {value!r}")


def test_wrong_entry_of_a_list(tmp_path: Path):
    line = message(tmp_path, changed("views/scales", [[256, 192], [256, 0]]))
    assert line == "FILE: views.scales.1.1: Input should be greater than 0, got 0"


@pytest.mark.parametrize(
    ("place", "value", "where", "form"),
    [
        ("views/scales", 128, "views.scales", "scales: [[1333, 800], [1333, 640]]"),
        ("views/scales", [256, 192], "views.scales", "scales: [[1333, 800], [1333, 640]]"),
        ("views/scales", "256x192", "views.scales", "scales: [[1333, 800], [1333, 640]]"),
        ("views/flips", "none", "views.flips", 'flips: ["none", "horizontal"]'),
        ("evaluation/scale", 800, "evaluation.scale", "scale: [1333, 800]"),
        ("evaluation/scale", [[800, 600]], "evaluation.scale", "scale: [1333, 800]"),
        ("data/digits/sizes", [256, 192], "data.digits.sizes", "sizes: [[256, 192], [192, 256]]"),
    ],
)
def test_a_wrong_form_shows_the_right_one(
    tmp_path: Path, place: str, value: object, where: str, form: str
):
    for line in message(tmp_path, changed(place, value)).splitlines():
        assert line.startswith(f"FILE: {where}")
        assert f"; expected the form `{form}`, got " in line


@pytest.mark.parametrize("place", ["labels", "training", "students", "online", "data/digits"])
def test_a_section_without_entries_is_empty(tmp_path: Path, place: str):
    assert load(tmp_path, changed(place, None)) == load(tmp_path, changed(place, {}))


@pytest.mark.parametrize("place", ["data", "teacher", "evaluation"])
def test_a_section_without_entries_may_lack_some(tmp_path: Path, place: str):
    assert message(tmp_path, changed(place, None)) == message(tmp_path, changed(place, {}))


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (
            "views: {scales: [[4, 3]]}\n",
            r"views stands twice \(lines \d+ and \d+\), and YAML would take the last",
        ),
        (
            "colearn:\n  one: {}\n  two: {}\n  one: {}\n",
            r"colearn\.one stands twice \(lines \d+ and \d+\)",
        ),
        (
            "online:\n  a:\n    config: x\n    config: y\n",
            r"online\.a\.config stands twice \(lines \d+ and \d+\)",
        ),
        ("online:\n  no: {}\n", r"online\.no \(line \d+\): YAML makes False of .*: 'no'"),
        ("online:\n  on: {}\n", r"online\.on \(line \d+\): YAML makes True of .*: 'on'"),
        ("online:\n  1: {}\n", r"online\.1 \(line \d+\): YAML makes 1 of this name; quote it"),
        (
            "online:\n  2024-01-01: {}\n",
            r"online\.2024-01-01 \(line \d+\): YAML makes datetime\.date",
        ),
        ("online:\n  ~: {}\n", r"online\.~ \(line \d+\): YAML makes None of this name"),
        ("online:\n  ? [1, 2]\n  : {}\n", r"line \d+: a name in online\. must be text"),
    ],
)
def test_names_that_are_doubtful(tmp_path: Path, lines: str, expected: str):
    found = message(tmp_path, yaml.safe_dump(GOOD) + lines)
    assert re.match(f"FILE: {expected}", found)


def test_a_quoted_name_and_a_merged_setting_are_fine(tmp_path: Path):
    content = {name: section for name, section in GOOD.items() if name != "students"}
    text = yaml.safe_dump(content) + (
        "students:\n"
        "  'no': &base {config: configs/small.py, method: lad, training: {epochs: 1}}\n"
        "  '1': {<<: *base, training: {epochs: 2}}\n"
        "  again: {<<: *base, method: own}\n"
    )
    students = load(tmp_path, text).students
    assert list(students) == ["no", "1", "again"]
    assert students["1"].training.epochs == 2


SPAN = {"long": 1333, "short": [640, 800]}


@pytest.mark.parametrize(
    ("views", "line"),
    [
        ({}, "views: give exactly one of scales, range, sampled; there is none"),
        (
            {"scales": [[4, 3]], "range": SPAN},
            "views: give exactly one of scales, range, sampled; there is scales and range",
        ),
        (
            {"sampled": {"count": 2}},
            "views.sampled: give exactly one of scales, range; there is none",
        ),
        (
            {"sampled": {"count": 2, "scales": [[4, 3]]}, "flips": ["none"]},
            "views: flips go with scales or range; sampled views have sampled.flip",
        ),
        (
            {"range": SPAN | {"step": 50}},
            "views.range: short must lead from 640 to 800 in steps of 50",
        ),
        (
            {"range": SPAN | {"short": [800, 640]}},
            "views.range: short must lead from 800 to 640 in steps of 32",
        ),
        ({"scales": [[4, 3]], "flips": ["none", "none"]}, "views.flips: an entry stands twice"),
        (
            {"sampled": {"count": 2, "scales": [[4, 3]], "crop": {}}},
            "views.sampled.crop: give exactly one of size, relative; there is none",
        ),
        (
            {"sampled": {"count": 2, "scales": [[4, 3]], "crop": {"relative": [0.9, 0.5]}}},
            "views.sampled.crop: relative must be the least and the greatest share, in this order",
        ),
        ({"sampled": {"scales": [[4, 3]]}}, "views.sampled.count: is missing"),
    ],
)
def test_view_plans_that_are_none(tmp_path: Path, views: dict[str, Any], line: str):
    (found,) = message(tmp_path, GOOD | {"views": views}).splitlines()
    assert found.startswith(f"FILE: {line}")


@pytest.mark.parametrize("section", ["students", "online"])
@pytest.mark.parametrize("name", ["a b", "teacher", "-x", "a/b", "", "é"])
def test_bad_student_name(tmp_path: Path, section: str, name: str):
    students = {name: GOOD["students"]["first"]}
    assert message(tmp_path, changed(section, students)) == (
        f"FILE: {section}.{name}: a student's name is letters, digits, _ and (not first) -, "
        f"and not 'teacher', got {name!r}"
    )


def test_online_labels_are_a_section_of_their_own(tmp_path: Path):
    assert message(tmp_path, changed("students/first/labels", "online")) == (
        "FILE: students.first.labels: students with online labels stand in the section `online` now"
    )
    params = load(tmp_path, changed("online", {"third": GOOD["students"]["first"]}))
    assert params.online["third"].labels_from == "online"
    assert [one.labels_from for one in params.students.values()] == ["cached", "own"]


def test_how_a_pass_runs_is_a_section_of_its_own(tmp_path: Path):
    assert message(tmp_path, changed("labels", {"batch_size": 8})) == (
        "FILE: labels.batch_size: stands in the section `teacher_pass` now"
    )


def test_a_name_that_is_in_both_sections(tmp_path: Path):
    online = dict.fromkeys(("third", "first"), GOOD["students"]["first"])
    assert message(tmp_path, changed("online", online)) == (
        "FILE: the file: students and online both have a student 'first'"
    )


@pytest.mark.parametrize("section", ["students", "online"])
def test_an_unknown_method_lists_the_methods(tmp_path: Path, section: str):
    student = {"config": "configs/small.py", "method": "ladd"}
    assert message(tmp_path, changed(section, {"it": student})) == (
        f"FILE: {section}.it.method: there is no such method; "
        "there are: bckd, lad, own, soft, solad, got 'ladd'"
    )


@pytest.mark.parametrize(
    ("section", "settings", "problem"),
    [
        ("students", {"method": "own", "assigner": "mmdet"}, None),
        ("online", {"method": "lad", "assigner": "mmdet"}, None),
        ("students", {"method": "lad", "assigner": "mmdet"}, "assigner: mmdet is for the method"),
        ("students", {"method": "solad", "assigner": "mmdet"}, "assigner: mmdet is for the method"),
        ("online", {"method": "soft", "assigner": "mmdet"}, "assigner: mmdet is for the method"),
        ("online", {"method": "own"}, "an online student learns from a teacher, and own from none"),
        ("students", {"method": "bckd", "assignment": "teacher"}, None),
        ("online", {"method": "bckd", "assignment": "teacher"}, None),
        ("students", {"method": "lad", "assignment": "own"}, "assignment is for the method bckd"),
        ("online", {"method": "lad", "assignment": "own"}, "assignment is for the method bckd"),
    ],
)
def test_what_goes_together(
    tmp_path: Path, section: str, settings: dict[str, str], problem: str | None
):
    content = changed(section, {"it": {"config": "configs/small.py"} | settings})
    if problem is None:
        load(tmp_path, content)
    else:
        (line,) = message(tmp_path, content).splitlines()
        assert line.startswith(f"FILE: {section}.it: {problem}")


def test_missing_setting(tmp_path: Path):
    content = deepcopy(GOOD)
    del content["students"]["first"]["config"]
    assert message(tmp_path, content) == "FILE: students.first.config: is missing"


def test_every_problem_is_told(tmp_path: Path):
    content = changed("training/epochs", 0)
    content["students"]["first"]["training"] = {"epoch": 1}
    assert len(message(tmp_path, content).splitlines()) == 2


def test_missing_file(tmp_path: Path):
    with pytest.raises(UserError, match=r"no .*params\.yaml here; .* give --params"):
        load_params(tmp_path / "params.yaml")


@pytest.mark.parametrize("text", ["a: [1, 2", "a:\n\t- 1", "a: \x00"])
def test_broken_yaml(tmp_path: Path, text: str):
    assert message(tmp_path, text).startswith("FILE is not valid YAML: ")


def test_text_that_is_not_utf8(tmp_path: Path):
    file = tmp_path / "params.yaml"
    file.write_bytes(b"data: \xff\xfe\xe9")
    with pytest.raises(UserError, match="is not valid YAML"):
        load_params(file)


@pytest.mark.parametrize(("text", "got"), [("", "None"), ("- 1\n", "[1]"), ("hello", "'hello'")])
def test_file_without_settings(tmp_path: Path, text: str, got: str):
    assert message(tmp_path, text) == (
        f"FILE: the file: should hold settings as `name: value`, got {got}"
    )


def test_unknown_student(tmp_path: Path):
    params = load(tmp_path, GOOD)
    assert entry("students", params.students, "first") is params.students["first"]
    with pytest.raises(UserError) as error:
        entry("students", params.students, "frist")
    assert str(error.value) == (
        "no 'frist' in the section students of params.yaml (did you mean 'first'?); "
        "there are: first, second"
    )
    with pytest.raises(UserError, match="no 'first' in the section online .*; there are: none"):
        entry("online", params.online, "first")


def test_own_training_settings_win(tmp_path: Path):
    params = load(tmp_path, GOOD)
    first, second = (params.students[n].training.over(params.training) for n in ("first", "second"))
    assert first == params.training
    assert (second.epochs, second.batch_size, second.lr) == (2, 16, 0.01)


def test_own_setting_wins_when_it_is_the_default(tmp_path: Path):
    default = Params.model_fields["training"].default.epochs
    content = changed("students/first/training", {"epochs": default})
    assert content["training"]["epochs"] != default
    params = load(tmp_path, content)
    assert params.students["first"].training.over(params.training).epochs == default


@pytest.mark.parametrize("file", sorted(ROOT.glob("configs/params/*.yaml")), ids=lambda f: f.stem)
def test_a_preset_is_valid_and_has_the_sections_that_dvc_needs(file: Path):
    params = load_params(file)
    assert set(yaml.safe_load(file.read_text())) == set(Params.model_fields)
    networks = [net.config for pair in params.colearn.values() for net in pair.networks]
    students = (*params.students.values(), *params.online.values())
    for config in (*networks, *(student.config for student in students)):
        assert (ROOT / config).is_file()


def test_networks_that_learn_together(tmp_path: Path):
    networks = [{"name": name, "config": "configs/paa_r50.py"} for name in ("big", "small")]
    pair = {"networks": networks, "training": {"epochs": 5}}
    params = load(tmp_path, changed("colearn", {"pair": pair}))
    found = params.colearn["pair"]
    assert [network.name for network in found.networks] == ["big", "small"]
    training = found.training.over(params.training)
    assert training.epochs == 5
    assert training.lr == params.training.lr
    with pytest.raises(UserError, match=r"no 'pear' in the section colearn .*did you mean 'pair'"):
        entry("colearn", params.colearn, "pear")
