# RTMDet-l; as in mmdet, its backbone starts from random weights.
_base_ = "_base_/rtmdet.py"
