"""Networks of mmdet's own config files, as small as they get."""

from pathlib import Path
from typing import Any

import mmdet
import torch
from mmengine.config import Config, ConfigDict
from mmengine.logging import MessageHub

from tests.conftest import Project

CONFIGS = Path(mmdet.__file__).parent / ".mim/configs"
FILES = {
    "PAA": "paa/paa_r50_fpn_1x_coco.py",
    "ATSS": "atss/atss_r50_fpn_1x_coco.py",
    "GFL": "gfl/gfl_r50_fpn_1x_coco.py",
    "VFNet": "vfnet/vfnet_r50_fpn_1x_coco.py",
    "TOOD": "tood/tood_r50_fpn_1x_coco.py",
    "DDOD": "ddod/ddod_r50_fpn_1x_coco.py",
    "RTMDet": "rtmdet/rtmdet_tiny_8xb32-300e_coco.py",
    "YOLOX": "yolox/yolox_tiny_8xb8-300e_coco.py",
    "RetinaNet": "retinanet/retinanet_r50_fpn_1x_coco.py",
}
SQUARE = ["PAA", "ATSS", "GFL", "VFNet", "TOOD", "DDOD"]
"""Families of one grid: square anchors, five levels."""
POINTS = ["RTMDet", "YOLOX"]
GRIDS = [SQUARE, POINTS, ["RetinaNet"]]
TEACHERS = [name for name in FILES if name != "DDOD"]


def zoo_model(family: str, num_classes: int = 10) -> ConfigDict:
    """The model of a family's config in mmdet, with few channels and no pretrained weights."""
    model = Config.fromfile(CONFIGS / FILES[family]).model
    model.bbox_head.num_classes = num_classes
    if family in POINTS:
        model.backbone.update(deepen_factor=0.167, widen_factor=0.125, init_cfg=None)
        model.neck.update(in_channels=[32, 64, 128], out_channels=32, num_csp_blocks=1)
        model.bbox_head.update(in_channels=32, feat_channels=32)
        # Views of any size, none that changes when its labels are there, and the same pixels for
        # both heads, as a student with its teacher in memory wants.
        model.data_preprocessor = dict(
            type="DetDataPreprocessor",
            mean=[103.0, 116.0, 123.0],
            std=[57.0, 57.0, 58.0],
            pad_size_divisor=32,
        )
    else:
        model.backbone.update(depth=18, base_channels=8, init_cfg=None, frozen_stages=-1)
        model.backbone.norm_eval = False
        model.neck.update(in_channels=[8, 16, 32, 64], out_channels=32)
        model.bbox_head.update(in_channels=32, feat_channels=32, stacked_convs=1)
    return _with_batch_norm(model)


def _with_batch_norm(model: Any) -> Any:
    if isinstance(model, dict):
        if model.get("type") == "SyncBN":
            model["type"] = "BN"
        for value in model.values():
            _with_batch_norm(value)
    return model


def past_the_first_epochs() -> None:
    """TOOD asks mmengine which epoch it is, and begins with another assigner."""
    MessageHub.get_current_instance().update_info("epoch", 100)


def random_network(model: ConfigDict, seed: int = 0) -> Any:
    """A network whose predictions differ from prior to prior, as those of a trained one do."""
    from pipeline.detector.build import build_detector

    torch.manual_seed(seed)
    network = build_detector(model)
    network.init_weights()
    with torch.no_grad():
        for name, weight in network.bbox_head.named_parameters():
            weight.add_(torch.randn_like(weight) * (0.02 if weight.dim() > 1 else 0.1))
            if "reg" in name and name.endswith("bias") and "conv" not in name.split(".")[0]:
                weight.add_(1.0)
    return network.eval()


def write_teacher(project: Project, family: str) -> None:
    """A teacher of a family in a project, with random weights, and the project's labels by it."""
    from pipeline.detector.model_folder import save_model

    model = zoo_model(family)
    state = random_network(model).state_dict()
    save_model(project.paths.teacher, model, state, {"name": "teacher", "method": "own"})
    project.fill_store(replace=True)
