# PAA ResNeXt-101 64x4d.
_base_ = "_base_/paa_x101.py"
