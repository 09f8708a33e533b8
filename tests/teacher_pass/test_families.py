"""Promise 1 for teachers of every family: the store says what mmdet says online."""

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.dataset import pseudo_collate

from pipeline.data.dataset import load_split
from pipeline.data.ground_truth import BACKGROUND, IGNORED
from pipeline.detector.build import build_detector
from pipeline.detector.model_folder import load_model
from pipeline.heads.registry import family_of
from pipeline.loading.dataset import view_dataset
from pipeline.loading.transforms import LabelTransforms
from pipeline.store.reader import LabelStore
from pipeline.verification.verify import verify_labels
from pipeline.views.plan import view_plan
from tests.conftest import Project
from tests.heads.zoo import TEACHERS, past_the_first_epochs, write_teacher

FAMILIES = [name for name in TEACHERS if name != "PAA"]  # tests/students/test_same_labels.py


@pytest.fixture(scope="module", params=FAMILIES)
def taught(request: pytest.FixtureRequest, checked: Project, tmp_path_factory) -> Project:
    project = checked.copy(tmp_path_factory.mktemp(request.param))
    write_teacher(project, request.param)
    return project


def test_every_assignment_is_what_mmdets_assigner_says_of_the_view_alone(taught: Project) -> None:
    """Asked by mmdet's own head, in the step in which it computes its losses."""
    past_the_first_epochs()
    network, model = load_model(taught.paths.teacher, "")
    family_type = type(family_of(network.bbox_head))
    asked = build_detector(family_type.recording(ConfigDict(model.to_dict())))
    asked.load_state_dict(network.state_dict())
    asked.eval()
    for module in asked.bbox_head.modules():
        module.training = False
    family = family_of(asked.bbox_head)
    split = load_split(taught.paths, "train")
    labels = LabelTransforms(meta_keys=["gt_ignore_flags"])
    dataset = view_dataset(split, view_plan(taught.params.views), labels)
    store = LabelStore(taught.paths.labels)
    learnt = ignored = 0
    for view in range(0, len(dataset), 3):
        ready = asked.data_preprocessor(pseudo_collate([dataset[view]]))
        sample = ready["data_samples"][0]
        with torch.no_grad():
            outputs = asked.bbox_head(asked.extract_feat(ready["inputs"]))
            if len(outputs) == 2 and type(asked.bbox_head).__name__ == "VFNetHead":
                outputs = (outputs[0], outputs[1], outputs[1])  # in training it says one more
            asked.bbox_head.loss_by_feat(
                *outputs, [sample.gt_instances], [sample.metainfo], [sample.ignored_instances]
            )
        said = [result for recorder in family.recorders() for result in recorder.take()]
        places = np.flatnonzero(~sample.metainfo["gt_ignore_flags"])
        lookup = np.array([IGNORED, BACKGROUND, *places])
        expected = (
            lookup[said[0].gt_inds.numpy() + 1]
            if said
            else np.full(
                len(store.assigned(view)), BACKGROUND
            )  # YOLOX does not ask without objects
        )
        assert np.array_equal(store.assigned(view), expected), store.place("assigned_gt", view)
        learnt += (expected >= 0).sum()
        ignored += (expected == IGNORED).sum()
    assert learnt > 50
    assert (ignored > 0) == (type(network.bbox_head).__name__ == "RetinaHead")


def test_the_store_is_verified(taught: Project) -> None:
    found = verify_labels(taught.paths, None, with_teacher=True)
    assert not found.problems, found.problems[:3]
    assert found.recomputed_views == len(LabelStore(taught.paths.labels))
    assert all(one.entries for one in found.comparisons.values())
