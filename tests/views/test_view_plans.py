"""Sampled view plans: what is drawn, recorded, replayed and refused; and ranges of scales."""

from typing import Any

import cv2
import numpy as np
import pytest
import torch
import zarr
from mmdet.structures.bbox import HorizontalBoxes
from mmengine.dataset import pseudo_collate
from torch.utils.data import DataLoader

import pipeline.views.plan
from pipeline.data.coco import load_images
from pipeline.data.dataset import load_split
from pipeline.inspection.estimate import describe as describe_estimate
from pipeline.inspection.store_info import describe, summarise
from pipeline.loading.transforms import NO_LABELS, ReplayView, view_pipeline
from pipeline.project.digests import digest
from pipeline.project.errors import UserError
from pipeline.store.fingerprint import column_digests, metadata_digests
from pipeline.store.reader import LabelStore
from pipeline.store.schema import VIEW_COLUMNS
from pipeline.verification.verify import verify_labels
from pipeline.views.plan import View, read_plan, view_plan
from pipeline.views.settings import Views
from stages.params import load_params
from tests.conftest import ROOT
from tests.inspection.test_estimate import ask
from tests.students.test_same_labels import dataset_of, mmdets_views, student_batch
from tests.teacher_pass.test_fingerprint import refused_fields

METHODS = ("own", "lad", "soft", "solad")


def plan_of(**settings: Any):
    return view_plan(
        Views.model_validate({"sampled": {"count": 4, "scales": [[1333, 800]]} | settings})
    )


@pytest.fixture
def project(sampled, tmp_path):
    return sampled.copy(tmp_path)


@pytest.fixture(scope="module")
def narrow(labelled, tmp_path_factory):
    """The project with windows so small that most hold no object."""
    project = labelled.copy(tmp_path_factory.mktemp("narrow")).replace(
        views={"sampled": {"count": 2, "scales": [[256, 192]], "crop": {"size": [64, 40]}}}
    )
    project.fill_store(replace=True)
    return project


def test_a_range_is_its_scales() -> None:
    scales = [(1333, short) for short in (640, 672, 704, 736, 768, 800)]
    span = {"long": 1333, "short": (640, 800)}
    expected = view_plan(Views(scales=scales))
    assert view_plan(Views.model_validate({"range": span})) == expected
    assert len(expected) == 12
    preset = load_params(ROOT / "configs/params/multiscale_2x.yaml")
    assert view_plan(preset.views) == expected
    # The same plan, so the same fingerprint.
    assert plan_of(scales=None, range=span).plain() == plan_of(scales=scales).plain()


def test_draws_depend_on_seed_image_and_number_alone() -> None:
    crop = {"relative": (0.3, 0.9)}
    plan, more = plan_of(crop=crop), plan_of(crop=crop, count=9)
    places = [(number, image) for image in range(300) for number in range(4)]
    views = {place: plan.view(*place, 480, 640) for place in places}
    order = np.random.default_rng(0).permutation(len(places))
    assert all(plan.view(*places[i], 480, 640) == views[places[i]] for i in order)
    assert all(more.view(*place, 480, 640) == view for place, view in views.items())
    assert len(set(views.values())) > 1100
    other = plan_of(crop=crop, seed=1)
    same = [other.view(*place, 480, 640) == view for place, view in views.items()]
    assert np.mean(same) < 0.05


def test_draws_are_even_and_windows_inside() -> None:
    scales = [(1333, 800), (1000, 600)]
    plan = plan_of(count=2000, scales=scales, flip=0.3, crop={"relative": (0.25, 0.75)})
    views = [plan.view(number, 7, 480, 640) for number in range(2000)]
    assert np.mean([view.flip for view in views]) == pytest.approx(0.3, abs=0.03)
    assert np.mean([view.scale == scales[0] for view in views]) == pytest.approx(0.5, abs=0.03)
    resized = np.array([view.resized_shape(480, 640) for view in views])
    windows = np.array([view.crop for view in views])
    corner, size = windows[:, :2], windows[:, 2:]
    assert (corner >= 0).all()
    assert (corner + size <= resized).all()
    assert (size % pipeline.views.plan.WINDOW_STEP == 0).all()
    share = size / resized
    assert share.mean(0) == pytest.approx([0.5, 0.5], abs=0.02)
    assert abs(np.corrcoef(share.T)[0, 1]) < 0.1
    free = resized - size
    assert (corner / np.maximum(free, 1)).mean(0) == pytest.approx([0.5, 0.5], abs=0.03)
    assert ((corner == 0).any(0) & (corner == free).any(0)).all()


def test_a_window_of_fixed_size_is_at_most_the_image() -> None:
    plan = plan_of(crop={"size": (640, 512)})
    for number in range(4):
        assert plan.view(number, 3, 480, 640).shape(480, 640) == (512, 640)
        assert plan.view(number, 3, 100, 640).shape(100, 640) == (208, 640)
        assert plan.view(number, 3, 640, 100).shape(640, 100) == (512, 208)


@pytest.mark.parametrize("crop", [None, {"size": (64, 40)}, {"relative": (0.5, 1.0)}])
def test_a_plan_is_read_from_its_fingerprint(crop) -> None:
    plan = plan_of(crop=crop, range={"long": 9, "short": (5, 5)}, scales=None)
    again = read_plan(plan.plain())
    views = [p.view(n, 5, 480, 640) for p in (plan, again) for n in range(4)]
    assert views[:4] == views[4:]
    assert again.plain() == plan.plain()


def test_replay_is_that_of_mmdets_transforms(sampled) -> None:
    ours = dataset_of(sampled, view_pipeline(NO_LABELS))
    theirs = mmdets_views(sampled)
    flips = 0
    for view in range(len(ours)):
        one, other = ours[view], theirs[view]
        assert torch.equal(one["inputs"], other["inputs"])
        own, expected = one["data_samples"], other["data_samples"]
        assert own.img_shape == expected.img_shape
        assert torch.equal(own.gt_instances.bboxes.tensor, expected.gt_instances.bboxes.tensor)
        assert torch.equal(own.gt_instances.labels, expected.gt_instances.labels)
        flips += own.flip
    assert 0 < flips < len(ours)


@pytest.mark.parametrize(
    ("box", "is_absent"),
    [
        ([10, 10, 40, 40], False),
        ([0, 10, 20.05, 40], True),  # a twentieth of a pixel is left
        ([0, 10, 20.25, 40], False),  # as of mmdet's RandomCrop
        ([0, 10, 20, 40], True),
        ([50, 59.95, 70, 80], True),
        ([30, 30, 30.05, 40], False),  # as small as that before
    ],
)
def test_a_sliver_that_a_crop_leaves_is_no_object(box: list[float], is_absent: bool) -> None:
    results = {
        "img": np.zeros((100, 100, 3), np.uint8),
        "ori_shape": (100, 100),
        "img_shape": (100, 100),
        "img_path": "a.png",
        "gt_bboxes": HorizontalBoxes(torch.tensor([box, [30.0, 30, 50, 50]])),
        "gt_ignore_flags": np.zeros(2, bool),
        "view": View(scale=(100, 100), flip=False, crop=(10, 20, 50, 60)),
    }
    replayed = ReplayView()(results)
    assert replayed["gt_ignore_flags"].tolist() == [is_absent, False]
    assert len(replayed["gt_bboxes"]) == 2


def test_replay_does_not_depend_on_workers_or_order(sampled) -> None:
    dataset = dataset_of(sampled, view_pipeline(NO_LABELS))
    order = np.random.default_rng(0).permutation(len(dataset)).tolist()
    expected = [dataset[view]["inputs"] for view in range(len(dataset))]
    loader = DataLoader(dataset, batch_sampler=[order], num_workers=2, collate_fn=pseudo_collate)
    (batch,) = loader
    for view, image in zip(order, batch["inputs"], strict=True):
        assert torch.equal(image, expected[view])


def test_a_view_can_be_replayed_from_plain_zarr(sampled) -> None:
    table = zarr.open_group(sampled.paths.labels, mode="r")["views"]
    columns = {name: table[name][:].tolist() for name, _ in table.arrays()}
    assert columns.keys() == VIEW_COLUMNS.keys()
    files = {
        image.image_id: sampled.folder / "source/images" / image.file_name
        for image in load_images(load_split(sampled.paths, "train").annotations)
    }
    dataset = dataset_of(sampled, view_pipeline(NO_LABELS))
    for view, (image_id, long, short, flip, top, left, height, width) in enumerate(
        zip(
            *(
                columns[name]
                for name in (
                    "image_id", "long", "short", "flip", "top", "left", "height", "width"
                )
            ),
            strict=True,
        )
    ):  # fmt: skip
        image = cv2.imread(str(files[image_id]))
        factor = min(long / max(image.shape[:2]), short / min(image.shape[:2]))
        size = tuple(int(side * factor + 0.5) for side in image.shape[1::-1])
        image = cv2.resize(image, size)[top : top + height, left : left + width]
        image = image[:, ::-1] if flip else image
        np.testing.assert_array_equal(dataset[view]["inputs"].permute(1, 2, 0).numpy(), image)


def test_verify_passes_on_sampled_views(sampled) -> None:
    found = verify_labels(sampled.paths, None, with_teacher=True)
    assert found.problems == []
    assert found.recomputed_views == 72


def test_verify_notices_a_recorded_view_that_is_not_of_the_plan(project) -> None:
    store = project.paths.labels
    group = zarr.open_group(store, mode="r+")
    group["views/left"][9:12] += 1
    attributes = dict(group.attrs)
    del attributes["digest"]
    attributes["table"] = column_digests({n: group[f"views/{n}"][:] for n in VIEW_COLUMNS})
    attributes["metadata"] = metadata_digests(store)
    group.attrs.update(attributes | {"digest": digest(attributes)})
    found = verify_labels(project.paths, None, with_teacher=False)
    assert [problem.partition(": expected ")[0] for problem in found.problems] == [
        f"views/left: view {number} of image 4" for number in range(3)
    ]
    with pytest.raises(UserError, match="was made from other views: long, .* of image 4 "):
        project.train("lad")


def test_views_that_are_drawn_otherwise_are_refused(project, monkeypatch) -> None:
    monkeypatch.setattr(pipeline.views.plan, "WINDOW_STEP", 32)
    with pytest.raises(UserError, match="was made from other views: .*; run `lad labels"):
        project.train("lad")
    project.change(training={"epochs": 1}).train("paa")


@pytest.mark.parametrize(
    ("change", "fields"),
    [
        ({"seed": 2}, {"views.seed"}),
        ({"count": 4}, {"views.count"}),
        ({"flip": 0.25}, {"views.flip"}),
        ({"scales": [[320, 240]]}, {"views.scales"}),
        ({"crop": {"relative": [0.5, 0.75]}}, {"views.crop.relative"}),
        ({"crop": {"size": [64, 64]}}, {"views.crop.relative", "views.crop.size"}),
    ],
)
def test_another_plan_is_refused_field_by_field(project, change: dict, fields: set[str]) -> None:
    views = project.params.model_dump(mode="json", exclude_unset=True)["views"]
    views["sampled"] |= change
    project.replace(views=views)
    assert refused_fields(project.train, "lad")[0] == fields
    found, _ = refused_fields(project.fill_store)
    assert found == fields


def test_a_fixed_plan_is_refused(project) -> None:
    project.replace(views={"scales": [[320, 240], [400, 300]]})
    fields, _ = refused_fields(project.train, "lad")
    assert {"views", "views.count", "views.seed"} <= fields


def test_windows_of_one_size_make_one_bucket(narrow) -> None:
    (bucket,) = LabelStore(narrow.paths.labels).layout.buckets
    assert bucket.name == "64x64"


def views_without_objects(project) -> list[int]:
    """Views that the crop leaves no object, of images that have some."""
    dataset = mmdets_views(project)
    return [
        view
        for view in range(len(dataset))
        if dataset.get_data_info(view)["instances"]
        and not len(dataset[view]["data_samples"].gt_instances)
    ]


def test_the_teacher_assigns_nothing_where_no_object_is_left(narrow) -> None:
    store = LabelStore(narrow.paths.labels)
    views = views_without_objects(narrow)
    assert len(views) > 10
    for view in views:
        assert (store.assigned(view) == -1).all()
        assert not store.soft(view).max_iou.any()
    learnt = [view for view in range(len(store)) if (store.assigned(view) != -1).any()]
    assert len(learnt) > 10
    assert verify_labels(narrow.paths, None, with_teacher=True).problems == []


@pytest.mark.parametrize("method", METHODS)
def test_students_learn_background_where_no_object_is_left(narrow, method: str) -> None:
    student, batch = student_batch(narrow, views_without_objects(narrow)[:6], method)
    total, losses = student.parse_losses(student.loss(batch["inputs"], batch["data_samples"]))
    assert total > 0
    assert all(loss == 0 for name, loss in losses.items() if "bbox" in name or "iou" in name)
    total.backward()
    gradients = [p.grad for p in student.parameters() if p.grad is not None]
    assert gradients
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("method", METHODS)
def test_students_of_all_methods_train(project, method: str) -> None:
    config = project.params.students["lad"].config
    project.change(training={"epochs": 1}, students={"it": {"config": config, "method": method}})
    record = project.train("it")
    assert record["steps"] == 3
    assert np.isfinite(record["curves"]["loss"]).all()


def test_store_info_and_estimate_tell_the_plan(sampled) -> None:
    text = describe(summarise(sampled.paths.labels))
    assert "views of every image: 3, drawn with the seed 1" in text
    assert "  scales: 320 x 240, 400 x 300" in text
    assert "  flipped: 50%" in text
    assert "  cropped to: 50% to 80% of each side" in text
    found = ask(sampled, views=9)
    assert [one.bucket for one in found.buckets] == list(
        LabelStore(sampled.paths.labels).layout.buckets
    )
    assert "3 views of each: 72 views in 11 buckets" in describe_estimate(found)
