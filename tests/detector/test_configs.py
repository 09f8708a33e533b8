"""Every config builds, labels as teacher and learns as student; every preset can be used."""

import re
from pathlib import Path
from typing import Any

import mmdet
import pytest
import torch
import yaml
from mmengine.config import ConfigDict
from mmengine.dataset import pseudo_collate

from pipeline.colearning.network import CoLAD, learning_together
from pipeline.data.dataset import load_split
from pipeline.detector.build import build_detector, load_model_config, without_downloads
from pipeline.detector.model_folder import save_model
from pipeline.loading.dataset import view_dataset
from pipeline.loading.transforms import NO_LABELS, LabelTransforms
from pipeline.store.reader import LabelStore
from pipeline.students.cached import cached_model, student_labels
from pipeline.students.settings import Student
from pipeline.heads.batched_paa import batched_paa
from pipeline.views.plan import view_plan
from stages.params import load_params
from tests.conftest import ROOT, SETTINGS, Project, write_source

PRESETS = sorted((ROOT / "configs/params").glob("*.yaml"))
CONFIGS = sorted(file.relative_to(ROOT).as_posix() for file in (ROOT / "configs").glob("*.py"))


def rows() -> list[tuple[str, str, str]]:
    """Student config, method and teacher config of all presets; unused configs learn alone."""
    found = set()
    for preset in PRESETS:
        params = load_params(preset)
        for student in (*params.students.values(), *params.online.values()):
            teacher = "" if student.method == "paa" else params.teacher.config
            found.add((student.config, student.method, teacher))
    used = {config for config, _, teacher in found for config in (config, teacher)}
    return sorted(found | {(config, "paa", "") for config in CONFIGS if config not in used})


def model_of(config: str) -> ConfigDict:
    """For the built-in data's classes, with random weights in place of those to fetch."""
    return without_downloads(load_model_config(ROOT / config, num_classes=10))


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


@pytest.mark.parametrize(("config", "method", "teacher"), rows())
def test_a_student_takes_a_step(project, stores, config: str, method: str, teacher: str) -> None:
    student = Student(config=config, method=method)
    store = stores(teacher) if teacher else None
    torch.manual_seed(1)
    model = model_of(config)
    model = cached_model(model, method, store) if store else batched_paa(model)
    network = build_detector(model).train()
    labels = NO_LABELS
    if store is not None:
        assert sum((store.assigned(view) >= 0).sum() for view in range(len(store))) > 0
        labels = student_labels(student, store)
    ready = network.data_preprocessor(pseudo_collate(batch(project, labels)), training=True)
    losses = network.loss(ready["inputs"], ready["data_samples"])
    expected = {"soft": {"loss_soft_cls"}, "solad": {"loss_cls", "loss_soft_cls"}}
    assert losses.keys() >= expected.get(method, {"loss_cls", "loss_bbox"})
    loss = sum(losses.values())
    assert loss > 0
    loss.backward()
    learning = [p for p in network.parameters() if p.requires_grad]
    # A parameter that never learns stops a training on several GPUs.
    assert all(p.grad is not None and p.grad.isfinite().all() for p in learning)
    before = network.bbox_head.atss_cls.bias.clone()
    torch.optim.SGD(learning, 0.01).step()
    assert not torch.equal(network.bbox_head.atss_cls.bias, before)


def pairs() -> list[tuple[str, str]]:
    """Configs of the networks that learn together in the presets."""
    found = {
        tuple(network.config for network in pair.networks)
        for preset in PRESETS
        for pair in load_params(preset).colearn.values()
    }
    return sorted(found)


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


@pytest.mark.parametrize("preset", PRESETS, ids=lambda file: file.stem)
def test_a_preset_names_what_there_is(preset: Path) -> None:
    params = load_params(preset)
    students = (*params.students.values(), *params.online.values())
    used = {params.teacher.config, *(student.config for student in students)}
    assert used <= set(CONFIGS)
    if params.teacher.checkpoint:
        zoo = Path(mmdet.__file__).parent / ".mim/configs/paa/metafile.yml"
        weights = {
            model["Weights"].rpartition("/")[2]: model["Name"]
            for model in yaml.safe_load(zoo.read_text())["Models"]
        }
        name = weights[Path(params.teacher.checkpoint).name]
        assert name.startswith(f"{Path(params.teacher.config).stem}_fpn_")


def test_the_tables_name_every_preset_and_config() -> None:
    text = (ROOT / "docs/tables.md").read_text()
    demo = {"paa_r18_half", "paa_r18_third", "paa_r18_quarter"}
    named = set(re.findall(r"`(\w+)`", text))
    assert {file.stem for file in PRESETS} <= named
    assert {Path(config).stem for config in CONFIGS} - demo <= named
