# PAA R-50 with conditional objectness beside the IoU branch: IoU+COP in the paper.
_base_ = "_base_/paa.py"
model = dict(bbox_head=dict(type="ObjectnessPAAHead", objectness="conditional"))
