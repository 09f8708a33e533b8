# TOOD on a ResNet-18 of quarter width, from random weights.
_base_ = "_base_/tood_scratch.py"
model = dict(
    backbone=dict(base_channels=16),
    neck=dict(in_channels=[16, 32, 64, 128], out_channels=32),
    bbox_head=dict(in_channels=32, feat_channels=32),
)
