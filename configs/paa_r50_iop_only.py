# PAA R-50 with implicit objectness in place of the IoU branch: IOP only in the paper.
_base_ = "_base_/paa.py"
model = dict(bbox_head=dict(type="ObjectnessPAAHead", objectness="implicit", iou_branch=False))
