"""The stage `data`: a folder for each split, which appears whole and changes with it alone."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from pipeline.data.coco import load_images
from pipeline.data.dataset import load_split
from pipeline.ingest.prepare import prepare_data
from pipeline.ingest.settings import BUILT_IN_DATA, Data
from pipeline.project.digests import digest
from pipeline.project.errors import UserError
from pipeline.project.paths import Paths
from stages.cli import lad
from tests.coco_builder import annotation, coco, contents, write_coco
from tests.conftest import ROOT

PATHS = Paths(Path("out"))
SPLITS = ("train", "val")
DIGITS = {"train_images": 5, "val_images": 3, "sizes": [(96, 64)]}
FILES = [f"{split}/{name}.json" for split in SPLITS for name in ("about", "annotations", "split")]


def settings(**data: Any) -> dict[str, Any]:
    return {
        "data": {"source": "coco", "digits": DIGITS} | data,
        "views": {"scales": [(96, 64)]},
        "teacher": {"config": "configs/teacher.py"},
        "evaluation": {"scale": (96, 64)},
    }


def prepare(**data: Any) -> dict[str, dict[str, Any]]:
    return prepare_data(Data.model_validate(settings(**data)["data"]), PATHS)


def names_in(folder: Path) -> list[str]:
    return sorted(one.name for one in folder.iterdir())


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with a COCO data set in `coco`."""
    monkeypatch.chdir(tmp_path)
    write_coco(tmp_path / "coco", "train.json")
    write_coco(tmp_path / "coco", "val.json", annotations=[annotation(4)])
    return tmp_path


def test_coco_data_set():
    found = prepare()
    assert found.keys() == set(SPLITS)
    for name, split in found.items():
        files = [PATHS.split(name) / file for file in ("split.json", "about.json")]
        decides, about = (json.loads(file.read_text()) for file in files)
        assert decides | about == split
        assert decides.keys() == {"classes", "annotations_digest", "images_digest"}
        assert split["classes"] == ["cat", "dog"]
    assert found["train"] == {
        "classes": ["cat", "dog"],
        "annotations_digest": digest(coco() | {"info": {}}),
        "images_digest": found["val"]["images_digest"],
        "images_folder": "coco/images",
        "images": 2,
        "objects": 3,
        "crowd": 0,
        "empty": 0,
        "reach_outside": 0,
        "dropped": {},
        "notes": ["2 image files of val are in train, too: what is measured on them says little"],
    }
    assert sorted(contents(PATHS.data)) == FILES


def test_a_split_is_what_was_prepared():
    written = prepare()
    for name in SPLITS:
        split = load_split(PATHS, name)
        assert split.classes == ("cat", "dog")
        assert split.annotations == PATHS.data / name / "annotations.json"
        assert split.images_folder == Path("coco/images")
        assert split.annotations_digest == written[name]["annotations_digest"]
        assert split.images_digest == written[name]["images_digest"]
    assert len(load_images(load_split(PATHS, "train").annotations)) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"no out/data/{}/split\.json: .*run `lad data`"),
        ("{", "is not what `lad data` writes .*run `lad data` again"),
        ("[]", "is not what `lad data` writes"),
        ('{"classes": ["cat"]}', "is not what `lad data` writes"),
    ],
)
@pytest.mark.parametrize("name", SPLITS)
def test_a_split_that_was_not_prepared(name: str, content: str | None, message: str):
    if content:
        PATHS.split(name).mkdir(parents=True)
        for file in ("split.json", "about.json"):
            (PATHS.split(name) / file).write_text(content)
    with pytest.raises(UserError, match=message.format(name)):
        load_split(PATHS, name)


def test_built_in_data_set():
    # Where the annotations of a data set of one's own lie has no say in it.
    files = {"annotations": "a.json", "images": "b"}
    found = prepare(source=BUILT_IN_DATA, train=files, val=files)
    for name, images in (("train", 5), ("val", 3)):
        assert found[name]["classes"] == list("0123456789")
        assert found[name]["images"] == images
        split = load_split(PATHS, name)
        assert split.images_folder == Path("out/data") / name / "images"
        for image in load_images(split.annotations):
            assert (split.images_folder / image.file_name).is_file()
        assert len(contents(PATHS.split(name))) == images + 3


@pytest.mark.parametrize("source", [BUILT_IN_DATA, "coco"])
def test_same_inputs_give_the_same_bytes(source: str):
    prepare(source=source)
    first = contents(PATHS.data)
    prepare(source=source)
    assert contents(PATHS.data) == first


def test_second_run_replaces_the_first():
    prepare(source=BUILT_IN_DATA)
    prepare()
    assert sorted(contents(PATHS.data)) == FILES


def test_a_corrected_validation_annotation_leaves_the_training_split_as_it_was(project: Path):
    prepare()
    train, val = (contents(PATHS.split(name)) for name in SPLITS)
    corrected = annotation(4, bbox=[1, 2, 3, 4], area=12)
    write_coco(project / "coco", "val.json", annotations=[corrected])
    prepare()
    assert contents(PATHS.split("train")) == train
    assert json.loads(contents(PATHS.split("val"))["annotations.json"])["annotations"] == [
        corrected
    ]
    # The digest in `split.json` follows.
    changed = {name for name, now in contents(PATHS.split("val")).items() if now != val[name]}
    assert changed == {"annotations.json", "split.json"}


@pytest.mark.parametrize("name", SPLITS)
def test_an_error_in_one_split_leaves_both_as_they_were(project: Path, name: str):
    prepare()
    first = contents(PATHS.data)
    other = "val" if name == "train" else "train"
    write_coco(project / "coco", f"{other}.json", annotations=[annotation(9)])
    write_coco(project / "coco", f"{name}.json", annotations=[annotation(1, category_id=99)])
    with pytest.raises(UserError, match=rf"{name}\.json(?s:.)*annotation of an unknown category"):
        prepare()
    assert contents(PATHS.data) == first
    assert names_in(PATHS.data) == list(SPLITS)


@pytest.mark.parametrize("error", [KeyboardInterrupt, UserError])
def test_failed_run_leaves_what_was_there(monkeypatch: pytest.MonkeyPatch, error: type):
    prepare(source=BUILT_IN_DATA)
    first = contents(PATHS.data)

    def fail(*args: object) -> None:
        raise error

    monkeypatch.setattr("pipeline.ingest.prepare.with_classes_of", fail)
    with pytest.raises(error):
        prepare()
    assert contents(PATHS.data) == first
    assert names_in(PATHS.data) == list(SPLITS)


def test_killed_run_does_not_disturb_the_next():
    for split in SPLITS:
        for end in ("partial", "removed", "partial.removed"):
            left = PATHS.data / f"{split}.{end}"
            left.mkdir(parents=True)
            (left / "rest").touch()
    prepare()
    assert names_in(PATHS.root) == ["data", "decoded_images.jsonl"]
    assert names_in(PATHS.data) == list(SPLITS)
    assert sorted(contents(PATHS.data)) == FILES


def test_images_elsewhere_have_their_full_path(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
):
    project = tmp_path_factory.mktemp("project")
    monkeypatch.chdir(project)
    relative = Path("..") / tmp_path.name / "coco"
    if not relative.is_dir():
        relative = tmp_path / "coco"
    prepare(source=str(relative))
    assert load_split(PATHS, "train").images_folder == tmp_path / "coco/images"


def test_source_in_the_output_folder_is_not_deleted():
    PATHS.root.mkdir()
    shutil.copytree("coco", PATHS.data / "mine")
    with pytest.raises(UserError, match=r"out/data/mine lies in out/data, which .* move"):
        prepare(source="out/data/mine")
    assert (PATHS.data / "mine/train.json").is_file()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"source": "nowhere"}, r"data\.source: no folder nowhere in .*pipeline/ingest/digits\.py"),
        ({"source": "coco/train.json"}, r"data\.source: no folder coco/train\.json"),
        ({"val": {"annotations": "no.json", "images": "images"}}, r"can't read .*coco/no\.json"),
        ({"val": {"annotations": "val.json", "images": "no"}}, "no folder coco/no"),
        (
            {"val": {"annotations": "empty.json", "images": "images"}},
            r"coco/empty\.json: there is no object to learn or to measure",
        ),
        (
            {"val": {"annotations": "other.json", "images": "images"}},
            r"categories of val, by name.* only in val: \['bird'\]",
        ),
    ],
)
def test_wrong_settings(project: Path, data: dict[str, Any], message: str):
    birds = [{"id": 7, "name": "bird"}]
    write_coco(project / "coco", "other.json", annotations=[annotation(1)], categories=birds)
    write_coco(project / "coco", "empty.json", annotations=[])
    with pytest.raises(UserError, match=message):
        prepare(**data)
    assert not list(PATHS.data.glob("*"))


def lad_data(**data: Any) -> Any:
    Path("params.yaml").write_text(json.dumps(settings(**data)))
    return CliRunner().invoke(lad, ["data"], catch_exceptions=False)


def test_command_reports(project: Path):
    annotations = [annotation(1, bbox=[-1, 0, 5, 5]), annotation(2, bbox=[50, 0, 5, 5])]
    write_coco(project / "coco", "train.json", annotations=annotations)
    result = lad_data(problems="drop")
    assert result.exit_code == 0
    assert result.stdout == (
        "train: 2 images (1 without objects), 1 objects (0 crowds)\n"
        "  1 boxes reach outside their image\n"
        "  left out: 1 x box outside its image\n"
        "  note: 2 image files of val are in train, too: what is measured on them says little\n"
        "  note: 1 classes have no object in train: dog\n"
        "val: 2 images (1 without objects), 1 objects (0 crowds)\n"
        "2 classes: cat, dog\n"
        "wrote out/data/train and out/data/val\n"
    )


def test_command_ends_with_one_clear_message(project: Path):
    Path("params.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(settings(source="no")))))
    command = [sys.executable, "-m", "stages.cli", "--params", project / "params.yaml"]
    done = subprocess.run(
        [*command, "--out", project / "out", "data"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("Error: data.source: no folder no in")
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1
