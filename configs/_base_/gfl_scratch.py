# What small networks trained from random weights change: all layers and norms learn.
_base_ = "gfl.py"
model = dict(
    backbone=dict(depth=18, frozen_stages=-1, norm_eval=False, init_cfg=None),
    bbox_head=dict(stacked_convs=2),
)
