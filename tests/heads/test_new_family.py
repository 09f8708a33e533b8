"""A head that the pipeline has never heard of takes one file: this one."""

from pathlib import Path

import numpy as np
from mmdet.models.dense_heads import AnchorHead
from mmdet.registry import MODELS
from mmengine.config import Config

from pipeline.evaluation.evaluate import evaluate
from pipeline.heads.family import HeadFamily, register
from pipeline.store.reader import LabelStore
from pipeline.verification.verify import verify_labels
from tests.conftest import Project


@MODELS.register_module(force=True)
class ToyHead(AnchorHead):
    """Two levels, one convolution each for classes and boxes."""


@register
class Toy(HeadFamily):
    """Its assigner decides by geometry, and it predicts encoded boxes: nothing is particular."""

    heads = ("ToyHead",)


MODEL = dict(
    type="SingleStageDetector",
    data_preprocessor=dict(type="DetDataPreprocessor", pad_size_divisor=32),
    backbone=dict(type="ResNet", depth=18, base_channels=8, out_indices=(2, 3), norm_eval=False),
    neck=dict(type="FPN", in_channels=[32, 64], out_channels=16, num_outs=2),
    bbox_head=dict(
        type="ToyHead",
        num_classes=10,
        in_channels=16,
        anchor_generator=dict(type="AnchorGenerator", ratios=[1.0], scales=[3], strides=[16, 32]),
        bbox_coder=dict(type="DeltaXYWHBBoxCoder"),
        loss_cls=dict(type="FocalLoss", use_sigmoid=True),
        loss_bbox=dict(type="L1Loss"),
    ),
    train_cfg=dict(
        assigner=dict(type="MaxIoUAssigner", pos_iou_thr=0.4, neg_iou_thr=0.3, min_pos_iou=0.2),
        allowed_border=-1,
        pos_weight=-1,
        debug=False,
    ),
    test_cfg=dict(nms_pre=100, score_thr=0.01, nms=dict(type="nms", iou_threshold=0.6)),
)
MODEL["train_cfg"]["sampler"] = dict(type="PseudoSampler")
MODEL["test_cfg"]["max_per_img"] = 10


def test_a_new_family_goes_from_data_to_students(checked: Project, tmp_path: Path) -> None:
    project = checked.copy(tmp_path / "project")
    config = str(tmp_path / "toy.py")
    Config(dict(model=MODEL)).dump(config)
    student = {"config": config, "training": {"epochs": 1}}
    project.change(teacher={"config": config, "training": {"epochs": 1, "batch_size": 8}})
    project.replace(
        students={
            "own": student | {"method": "own"},
            "lad": student | {"method": "lad"},
            "solad": student | {"method": "solad"},
            "bckd": student | {"method": "bckd"},
        },
        online={"online": student | {"method": "solad"}},
    )
    project.make_teacher()
    project.fill_store()
    store = LabelStore(project.paths.labels)
    assert (np.concatenate([store.assigned(view) for view in range(len(store))]) >= 0).sum() > 50
    assert not verify_labels(project.paths, None, with_teacher=True).problems
    losses = {"loss_cls", "loss_bbox"}
    for name, expected in (
        ("own", losses),
        ("lad", losses),
        ("solad", losses | {"loss_soft_cls", "loss_soft_bbox"}),
        ("bckd", losses | {"loss_kd_cls", "loss_kd_bbox"}),
        ("online", losses | {"loss_soft_cls", "loss_soft_bbox"}),
    ):
        record = project.train(name)
        assert expected | {"step", "loss"} == record["curves"].keys()
        assert record["steps"] == 3
    metrics = evaluate("lad", project.params.evaluation, project.paths)
    assert 0 <= metrics["AP"] <= 1
