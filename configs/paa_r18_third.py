# PAA on a ResNet-18 of third width, from random weights.
_base_ = "_base_/scratch.py"
model = dict(
    backbone=dict(base_channels=24),
    neck=dict(in_channels=[24, 48, 96, 192], out_channels=64),
    bbox_head=dict(in_channels=64, feat_channels=64),
)
