# GFL R-101, the teacher of BCKD's table on COCO.
_base_ = "_base_/gfl.py"
model = dict(
    backbone=dict(depth=101, init_cfg=dict(type="Pretrained", checkpoint="torchvision://resnet101"))
)
