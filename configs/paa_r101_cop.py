# PAA R-101 with conditional objectness: the larger network of the paper's co-learning.
_base_ = "_base_/paa_r101.py"
model = dict(bbox_head=dict(type="ObjectnessPAAHead", objectness="conditional"))
