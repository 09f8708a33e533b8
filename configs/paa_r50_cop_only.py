# PAA R-50 with conditional objectness in place of the IoU branch: COP only in the paper.
_base_ = "_base_/paa.py"
model = dict(bbox_head=dict(type="ObjectnessPAAHead", objectness="conditional", iou_branch=False))
