# PAA R-18 with implicit objectness beside the IoU branch: IoU+IOP in the paper.
_base_ = "_base_/paa_r18.py"
model = dict(bbox_head=dict(type="ObjectnessPAAHead", objectness="implicit"))
