# PAA ResNeXt-101 with conditional objectness: the larger network of the paper's best row.
# There are no deformable convolutions in it; for those, give the backbone
# dcn=dict(type="DCNv2", deform_groups=1, fallback_on_stride=False) and
# stage_with_dcn=(False, True, True, True). They need an mmcv with compiled ops.
_base_ = "_base_/paa_x101.py"
model = dict(bbox_head=dict(type="ObjectnessPAAHead", objectness="conditional"))
