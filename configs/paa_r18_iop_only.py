# PAA R-18 with implicit objectness in place of the IoU branch: IOP only in the paper.
_base_ = "_base_/paa_r18.py"
model = dict(bbox_head=dict(type="ObjectnessPAAHead", objectness="implicit", iou_branch=False))
