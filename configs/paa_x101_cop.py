# PAA ResNeXt-101 64x4d with deformable convolutions and conditional objectness: the larger network
# of the paper's best row.
_base_ = "_base_/paa.py"
model = dict(
    backbone=dict(
        type="ResNeXt",
        depth=101,
        groups=64,
        base_width=4,
        dcn=dict(type="DCNv2", deform_groups=1, fallback_on_stride=False),
        stage_with_dcn=(False, True, True, True),
        init_cfg=dict(type="Pretrained", checkpoint="open-mmlab://resnext101_64x4d"),
    ),
    bbox_head=dict(type="ObjectnessPAAHead", objectness="conditional"),
)
