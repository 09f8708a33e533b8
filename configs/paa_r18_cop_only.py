# PAA R-18 with conditional objectness in place of the IoU branch: COP only in the paper.
_base_ = "_base_/paa_r18.py"
model = dict(bbox_head=dict(type="ObjectnessPAAHead", objectness="conditional", iou_branch=False))
