# TOOD R-50.
_base_ = "_base_/tood.py"
