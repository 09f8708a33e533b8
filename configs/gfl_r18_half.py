# GFL on a ResNet-18 of half width, from random weights.
_base_ = "_base_/gfl_scratch.py"
model = dict(
    backbone=dict(base_channels=32),
    neck=dict(in_channels=[32, 64, 128, 256], out_channels=64),
    bbox_head=dict(in_channels=64, feat_channels=64),
)
