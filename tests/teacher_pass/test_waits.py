"""Neither the pass nor a student's step waits for a GPU once per view or object."""

import pytest
import torch

from pipeline.data.dataset import load_split
from pipeline.detector.build import build_detector, load_model_config, without_downloads
from pipeline.loading.collate import view_loader
from pipeline.loading.dataset import view_dataset
from pipeline.loading.transforms import ALL_OBJECTS
from pipeline.store.reader import LabelStore
from pipeline.students.cached import cached_model, student_labels
from pipeline.students.settings import Student
from pipeline.teacher_pass.label import label_rows, load_teacher, run_network
from pipeline.views.plan import view_plan
from tests.conftest import DEVICES
from tests.waits import count_waits

FEW, MANY = 2, 8


def views_of_one_size(labelled, count: int) -> list[int]:
    shard = next(s for s in LabelStore(labelled.paths.labels).layout.shards() if len(s.views) >= 8)
    return shard.views.tolist()[:count]


def batch_of(labelled, labels, views: list[int]):
    split = load_split(labelled.paths, "train")
    dataset = view_dataset(split, view_plan(labelled.params.views), labels)
    (batch,) = view_loader(dataset, [views], 0)
    return batch


@pytest.mark.parametrize("device", DEVICES)
def test_a_pass_waits_as_often_for_many_views_as_for_few(
    labelled, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher, _ = load_teacher(labelled.paths, load_split(labelled.paths, "train"), device=device)
    soft = labelled.params.labels.soft_settings()

    def waits(count: int) -> int:
        batch = batch_of(labelled, ALL_OBJECTS, views_of_one_size(labelled, count))
        return count_waits(
            device, lambda: label_rows(teacher, run_network(teacher, batch), soft), monkeypatch
        )

    waits(FEW)  # tables that are kept are made
    assert waits(MANY) == waits(FEW) > 0


@pytest.mark.parametrize("device", DEVICES)
def test_showing_views_to_the_network_waits_for_nothing(
    labelled, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher, _ = load_teacher(labelled.paths, load_split(labelled.paths, "train"), device=device)
    batch = batch_of(labelled, ALL_OBJECTS, views_of_one_size(labelled, MANY))
    # mmengine looks at the padded sizes, which are the CPU's on any device.
    unavoidable = 0 if device == "cuda" else 1
    waits = count_waits(device, lambda: run_network(teacher, batch), monkeypatch)
    assert waits == unavoidable


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("method", ["lad", "soft", "solad"])
@pytest.mark.parametrize("mixed", [False, True], ids=["one size", "several sizes"])
def test_a_step_waits_as_often_for_many_views_as_for_few(
    labelled, device: str, method: str, mixed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LabelStore(labelled.paths.labels)
    student = Student(config="", method=method)
    config = labelled.params.students["lad"].config
    model = without_downloads(load_model_config(config, store.layout.soft_classes))
    network = build_detector(cached_model(model, student, store)).to(device).train()

    def waits(count: int) -> int:
        views = views_of_one_size(labelled, count)
        if mixed:
            views[0] = next(
                v for v in range(len(store)) if store.padded(v) != store.padded(views[1])
            )
        batch = batch_of(labelled, student_labels(student, store), views)

        def step() -> None:
            ready = network.data_preprocessor(batch, training=True)
            losses = network.loss(ready["inputs"], ready["data_samples"])
            torch.stack([torch.as_tensor(v).sum() for v in losses.values()]).sum().backward()

        return count_waits(device, step, monkeypatch)

    waits(FEW)
    assert waits(MANY) == waits(FEW)
