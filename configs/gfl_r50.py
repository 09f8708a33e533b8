# GFL R-50, the student of BCKD's table on COCO.
_base_ = "_base_/gfl.py"
