"""Which heads are known, and what is said of others."""

from pathlib import Path

import pytest
from mmengine.config import Config

from pipeline.detector.build import load_model_config
from pipeline.heads.family import known_heads
from pipeline.project.errors import UserError
from tests.conftest import Project
from tests.heads.zoo import CONFIGS, FILES, zoo_model

UNKNOWN = {
    "fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py": "FCOSHead: it decides within its loss",
    "autoassign/autoassign_r50-caffe_fpn_1x_coco.py": "AutoAssignHead: it decides within its loss",
    "free_anchor/freeanchor_r50_fpn_1x_coco.py": "FreeAnchorRetinaHead: it decides within its loss",
    "detr/detr_r50_8xb2-150e_coco.py": "DETRHead has queries instead of priors",
    "faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py": "FasterRCNN has two stages",
    "ld/ld_r18-gflv1-r101_fpn_1x_coco.py": "name GFLHead",
    "fsaf/fsaf_r50_fpn_1x_coco.py": "FSAFHead: no family has registered it",
}


@pytest.mark.parametrize("file", FILES.values())
def test_mmdets_own_configs_are_taken(file: str) -> None:
    model = load_model_config(CONFIGS / file, num_classes=3)
    assert model.bbox_head.num_classes == 3


@pytest.mark.parametrize(("file", "reason"), UNKNOWN.items())
def test_an_unknown_head_is_refused_with_the_reason_and_what_works(file: str, reason: str) -> None:
    with pytest.raises(UserError) as error:
        load_model_config(CONFIGS / file)
    assert reason in str(error.value)
    assert all(head in str(error.value) for head in known_heads())
    assert "\n" not in str(error.value)


def test_a_config_without_model_is_refused(tmp_path) -> None:
    file = tmp_path / "c.py"
    Config(dict(x=1)).dump(file)
    with pytest.raises(UserError, match="it has no model"):
        load_model_config(file)


def test_a_ddod_is_refused_as_a_teacher_before_it_trains(checked: Project, tmp_path: Path) -> None:
    project = checked.copy(tmp_path / "project")
    file = tmp_path / "ddod.py"
    Config(dict(model=zoo_model("DDOD"))).dump(file)
    project.change(teacher={"config": str(file)})
    with pytest.raises(UserError, match="it makes two assignments"):
        project.make_teacher()
    assert not project.paths.teacher.exists()
