import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from pipeline import prepare
from pipeline.data.coco import annotations_digest, load_images
from pipeline.data.dataset import load_data_info
from pipeline.ingest.prepare import prepare_data
from pipeline.project.errors import UserError
from pipeline.project.params import BUILT_IN_DATA, Params
from pipeline.project.paths import Paths
from stages.cli import lad
from tests.coco_builder import annotation, coco, contents, write_coco

ROOT = Path(__file__).parents[2]
PATHS = Paths(Path("out"))
DIGITS = {"train_images": 5, "val_images": 3, "sizes": [(96, 64)]}


def settings(**data: Any) -> dict[str, Any]:
    return {
        "data": {"source": "coco", "digits": DIGITS} | data,
        "views": {"scales": [(96, 64)]},
        "teacher": {"config": "configs/teacher.py"},
        "evaluation": {"scale": (96, 64)},
    }


def params(**data: Any) -> Params:
    return Params.model_validate(settings(**data))


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with a COCO data set in `coco`."""
    monkeypatch.chdir(tmp_path)
    write_coco(tmp_path / "coco", "train.json")
    write_coco(tmp_path / "coco", "val.json", annotations=[annotation(4)])
    return tmp_path


def test_coco_data_set():
    info = prepare_data(params(), PATHS)
    assert json.loads((PATHS.data / "data.json").read_text()) == info
    assert info["classes"] == ["cat", "dog"]
    assert info["train"] == {
        "images_folder": "coco/images",
        "annotations_digest": annotations_digest(coco() | {"info": {}}),
        "images_digest": info["val"]["images_digest"],
        "images": 2,
        "objects": 3,
        "crowd": 0,
        "empty": 0,
        "reach_outside": 0,
        "dropped": {},
    }
    assert sorted(contents(PATHS.data)) == ["data.json", "train.json", "val.json"]


def test_data_info_is_what_was_prepared():
    written = prepare_data(params(), PATHS)
    info = load_data_info(PATHS)
    assert info.classes == ("cat", "dog")
    for name, split in (("train", info.train), ("val", info.val)):
        assert split.annotations == PATHS.data / f"{name}.json"
        assert split.images_folder == Path("coco/images")
        assert split.annotations_digest == written[name]["annotations_digest"]
        assert split.images_digest == written[name]["images_digest"]
    assert len(load_images(info.train.annotations)) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"no out/data/data\.json: .*run `lad data`"),
        ("{", "is not what `lad data` writes .*run `lad data` again"),
        ("[]", "is not what `lad data` writes"),
        ('{"classes": ["cat"]}', "is not what `lad data` writes"),
    ],
)
def test_data_info_without_prepared_data(content: str | None, message: str):
    if content:
        PATHS.data.mkdir(parents=True)
        (PATHS.data / "data.json").write_text(content)
    with pytest.raises(UserError, match=message):
        load_data_info(PATHS)


def test_built_in_data_set():
    # Where the annotations of a data set of one's own lie has no say in it.
    split = {"annotations": "a.json", "images": "b"}
    info = prepare_data(params(source=BUILT_IN_DATA, train=split, val=split), PATHS)
    assert info["classes"] == list("0123456789")
    assert (info["train"]["images"], info["val"]["images"]) == (5, 3)
    folder = load_data_info(PATHS).train.images_folder
    assert folder == Path("out/data/source/images")
    for image in load_images(PATHS.data / "train.json"):
        assert (folder / image.file_name).is_file()


@pytest.mark.parametrize("source", [BUILT_IN_DATA, "coco"])
def test_same_inputs_give_the_same_bytes(source: str):
    prepare_data(params(source=source), PATHS)
    first = contents(PATHS.root)
    prepare_data(params(source=source), PATHS)
    assert contents(PATHS.root) == first


def test_second_run_replaces_the_first():
    prepare_data(params(source=BUILT_IN_DATA), PATHS)
    prepare_data(params(), PATHS)
    assert sorted(contents(PATHS.root)) == ["data/data.json", "data/train.json", "data/val.json"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, UserError])
def test_failed_run_leaves_what_was_there(monkeypatch: pytest.MonkeyPatch, error: type):
    prepare_data(params(source=BUILT_IN_DATA), PATHS)
    first = contents(PATHS.root)

    def fail(*args: object) -> None:
        raise error

    monkeypatch.setattr(prepare, "check_same_classes", fail)
    with pytest.raises(error):
        prepare_data(params(), PATHS)
    assert contents(PATHS.root) == first


def test_killed_run_does_not_disturb_the_next():
    for name in ("data.partial", "data.old"):
        (PATHS.root / name).mkdir(parents=True)
        (PATHS.root / name / "rest").touch()
    prepare_data(params(), PATHS)
    assert [folder.name for folder in PATHS.root.iterdir()] == ["data"]


def test_images_elsewhere_have_their_full_path(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
):
    project = tmp_path_factory.mktemp("project")
    monkeypatch.chdir(project)
    relative = Path("..") / tmp_path.name / "coco"
    if not relative.is_dir():
        relative = tmp_path / "coco"
    prepare_data(params(source=str(relative)), PATHS)
    assert load_data_info(PATHS).train.images_folder == tmp_path / "coco/images"


def test_source_in_the_output_folder_is_not_deleted():
    PATHS.root.mkdir()
    shutil.copytree("coco", PATHS.data / "mine")
    with pytest.raises(UserError, match=r"out/data/mine lies in out/data, which .* move"):
        prepare_data(params(source="out/data/mine"), PATHS)
    assert (PATHS.data / "mine/train.json").is_file()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"source": "nowhere"}, r"data\.source: no folder nowhere in .*pipeline/digits\.py"),
        ({"source": "coco/train.json"}, r"data\.source: no folder coco/train\.json"),
        ({"val": {"annotations": "no.json", "images": "images"}}, r"can't read .*coco/no\.json"),
        ({"val": {"annotations": "val.json", "images": "no"}}, "no folder coco/no"),
        (
            {"val": {"annotations": "other.json", "images": "images"}},
            r"same categories .* only in train: \['dog'\]",
        ),
    ],
)
def test_wrong_settings(project: Path, data: dict[str, Any], message: str):
    cat = [{"id": 7, "name": "cat"}]
    write_coco(project / "coco", "other.json", annotations=[], categories=cat)
    with pytest.raises(UserError, match=message):
        prepare_data(params(**data), PATHS)
    assert not PATHS.data.exists()


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
        "val: 2 images (1 without objects), 1 objects (0 crowds)\n"
        "2 classes: cat, dog\n"
        "wrote out/data/data.json\n"
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
