"""Every config builds, labels as teacher and learns as student; every preset can be used."""

import re
from pathlib import Path
from typing import Any

import mmdet
import pytest
import torch
import yaml
from mmengine.config import Config, ConfigDict
from mmengine.dataset import pseudo_collate

from pipeline.colearning.network import CoLAD, learning_together
from pipeline.data.dataset import load_split
from pipeline.detector.build import build_detector, load_model_config, without_downloads
from pipeline.detector.model_folder import save_model
from pipeline.heads.registry import family_of_model
from pipeline.loading.dataset import view_dataset
from pipeline.loading.transforms import NO_LABELS, LabelTransforms
from pipeline.store.reader import LabelStore
from pipeline.students.cached import cached_model, student_labels
from pipeline.students.settings import Student
from pipeline.views.plan import view_plan
from stages.params import load_params
from tests.conftest import ROOT, SETTINGS, Project, write_source
from tests.heads.zoo import past_the_first_epochs

ZOO = Path(mmdet.__file__).parent / ".mim/configs"
PRESETS = sorted((ROOT / "configs/params").glob("*.yaml"))
CONFIGS = sorted(file.relative_to(ROOT).as_posix() for file in (ROOT / "configs").glob("*.py"))


def rows() -> list[tuple[str, str, str, str]]:
    """Student config, method, assignment and teacher config of all presets.

    Configs that no preset has learn alone.
    """
    found = set()
    for preset in PRESETS:
        params = load_params(preset)
        for student in (*params.students.values(), *params.online.values()):
            teacher = "" if student.method == "own" else params.teacher.config
            found.add((student.config, student.method, student.assignment or "", teacher))
    used = {config for config, *_, teacher in found for config in (config, teacher)}
    used |= {config for pair in pairs() for config in pair}
    return sorted(found | {(config, "own", "", "") for config in CONFIGS if config not in used})


def pairs() -> list[tuple[str, str]]:
    """Configs of the networks that learn together in the presets."""
    found = {
        tuple(network.config for network in pair.networks)
        for preset in PRESETS
        for pair in load_params(preset).colearn.values()
    }
    return sorted(found)


def model_of(config: str) -> ConfigDict:
    """For the built-in data's classes, with random weights in place of those to fetch."""
    model = without_downloads(load_model_config(ROOT / config, num_classes=10))
    if "dcn" in model.backbone:
        model.backbone.depth = 50  # grouped deformable convolutions take long on a CPU
    return model


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Project:
    """Four small images."""
    folder = tmp_path_factory.mktemp("configs")
    (folder / "params.yaml").write_text(yaml.safe_dump(SETTINGS))
    write_source(folder / "source", images=4)
    project = Project(folder).change(
        data={"source": str(folder / "source")},
        views={"scales": [[64, 64]], "flips": ["none"]},
        students={},
    )
    project.check_data()
    return project


@pytest.fixture(scope="module")
def stores(project, tmp_path_factory):
    """The label store of a teacher config, made once, with random weights."""
    made: dict[str, LabelStore] = {}

    def store_of(config: str) -> LabelStore:
        if config not in made:
            own = project.copy(tmp_path_factory.mktemp("store"))
            model = model_of(config)
            torch.manual_seed(0)
            save_model(own.paths.teacher, model, build_detector(model).state_dict(), {})
            own.fill_store()
            made[config] = LabelStore(own.paths.labels)
        return made[config]

    return store_of


HEAD = {"loss_cls", "loss_bbox"}
EXPECTED = {
    "soft": {"loss_soft_cls", "loss_soft_bbox"},
    "solad": HEAD | {"loss_soft_cls", "loss_soft_bbox"},
    "bckd": HEAD | {"loss_kd_cls", "loss_kd_bbox"},
}


@pytest.mark.parametrize(("config", "method", "assignment", "teacher"), rows())
def test_a_student_takes_a_step(
    project, stores, config: str, method: str, assignment: str, teacher: str
) -> None:
    past_the_first_epochs()
    student = Student(config=config, method=method, assignment=assignment or None)
    store = stores(teacher) if teacher else None
    torch.manual_seed(1)
    model = model_of(config)
    if store:
        assert sum((store.assigned(view) >= 0).sum() for view in range(len(store))) > 0
        network = build_detector(cached_model(model, student, store))
        labels, head = student_labels(student, store), network.detector.bbox_head
        assert network.family.grid.plain() == store.fingerprint["priors"]
    else:
        network = build_detector(family_of_model(model, config).own(model))
        labels, head = NO_LABELS, network.bbox_head
    ready = network.train().data_preprocessor(pseudo_collate(batch(project, labels)), training=True)
    losses = network.loss(ready["inputs"], ready["data_samples"])
    assert losses.keys() >= EXPECTED.get(method, HEAD)
    loss, _ = network.parse_losses(losses)
    assert loss > 0
    loss.backward()
    learning = [p for p in network.parameters() if p.requires_grad]
    # A parameter that never learns stops a training on several GPUs.
    assert all(p.grad is not None and p.grad.isfinite().all() for p in learning)
    before = [p.clone() for p in head.parameters()]
    torch.optim.SGD(learning, 0.01).step()
    assert not all(map(torch.equal, before, head.parameters()))


@pytest.mark.parametrize("configs", pairs(), ids=" + ".join)
def test_two_networks_take_a_step_together(project, configs: tuple[str, str]) -> None:
    torch.manual_seed(1)
    networks = [learning_together(model_of(config)) for config in configs]
    pair = CoLAD(["one", "two"], networks, criterion="std_mean", per_level=True).train()
    ready = pair.data_preprocessor(pseudo_collate(batch(project, NO_LABELS)), training=True)
    found = pair.loss(ready["inputs"], ready["data_samples"])
    assert found["taught_by_one"] + found["taught_by_two"] == pytest.approx(1)
    sum(value for name, value in found.items() if "loss" in name).backward()
    learning = [p for p in pair.parameters() if p.requires_grad]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in learning)


def batch(project, labels: LabelTransforms) -> list[dict[str, Any]]:
    """Two views with what the student learns from."""
    split = load_split(project.paths, "train")
    dataset = view_dataset(split, view_plan(project.params.views), labels)
    return [dataset[0], dataset[1]]


@pytest.mark.parametrize("config", CONFIGS)
def test_what_a_config_inherits_is_watched(config: str) -> None:
    # dvc.yaml names a student's config and the folder `_base_`, no other.
    bases = re.findall(r'^_base_ = "(.*)"$', (ROOT / config).read_text(), re.MULTILINE)
    assert bases
    assert all(re.fullmatch(r"_base_/\w+\.py", base) for base in bases)


@pytest.mark.parametrize(
    ("config", "original"),
    [
        ("paa_r50", "paa/paa_r50_fpn_1x_coco"),
        ("paa_r101", "paa/paa_r101_fpn_1x_coco"),
        ("gfl_r50", "gfl/gfl_r50_fpn_1x_coco"),
        ("gfl_r101", "gfl/gfl_r101_fpn_ms-2x_coco"),
        ("tood_r50", "tood/tood_r50_fpn_1x_coco"),
        ("tood_r101", "tood/tood_r101_fpn_ms-2x_coco"),
        ("rtmdet_l", "rtmdet/rtmdet_l_8xb32-300e_coco"),
        ("rtmdet_s", "rtmdet/rtmdet_s_8xb32-300e_coco"),
        ("rtmdet_tiny", "rtmdet/rtmdet_tiny_8xb32-300e_coco"),
    ],
)
def test_a_config_has_the_network_of_mmdets(config: str, original: str) -> None:
    found = Config.fromfile(ROOT / f"configs/{config}.py").model
    expected = Config.fromfile(ZOO / f"{original}.py").model
    if expected.type == "RTMDet":  # see configs/_base_/rtmdet.py
        assert expected.data_preprocessor.pop("batch_augments") is None
        expected.data_preprocessor.pad_size_divisor = 32
    assert found.to_dict() == expected.to_dict()


@pytest.mark.parametrize("preset", PRESETS, ids=lambda file: file.stem)
def test_a_preset_names_what_there_is(preset: Path) -> None:
    params = load_params(preset)
    students = (*params.students.values(), *params.online.values())
    used = {params.teacher.config, *(student.config for student in students)}
    assert used <= set(CONFIGS)
    if params.teacher.checkpoint:
        config = Path(params.teacher.config).stem
        zoo = ZOO / config.partition("_")[0] / "metafile.yml"
        weights = {
            model["Weights"].rpartition("/")[2]: model["Name"]
            for model in yaml.safe_load(zoo.read_text())["Models"]
            if "Weights" in model
        }
        name = weights[Path(params.teacher.checkpoint).name]
        assert name.startswith(f"{config}_")


def test_the_tables_name_every_preset_and_config() -> None:
    text = (ROOT / "docs/tables.md").read_text()
    named = set(re.findall(r"`(\w+)`", text))
    assert {file.stem for file in PRESETS} <= named
    small = re.compile(r"\w+_r18_(half|third|quarter)")  # for the built-in data
    assert {stem for file in CONFIGS if not small.fullmatch(stem := Path(file).stem)} <= named
