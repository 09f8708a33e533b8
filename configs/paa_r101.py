# PAA R-101, the larger network of the paper's tables on COCO.
_base_ = "_base_/paa.py"
model = dict(
    backbone=dict(depth=101, init_cfg=dict(type="Pretrained", checkpoint="torchvision://resnet101"))
)
