# PAA R-50 with implicit objectness beside the IoU branch: IoU+IOP in the paper.
_base_ = "_base_/paa.py"
model = dict(bbox_head=dict(type="ObjectnessPAAHead", objectness="implicit"))
