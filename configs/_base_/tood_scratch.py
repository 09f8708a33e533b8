# What small networks trained from random weights change: all layers and norms learn.
_base_ = "tood.py"
model = dict(
    backbone=dict(depth=18, frozen_stages=-1, norm_eval=False, init_cfg=None),
    bbox_head=dict(stacked_convs=2),
    # A short training has no time for four epochs of the simpler assigner.
    train_cfg=dict(initial_epoch=2),
)
