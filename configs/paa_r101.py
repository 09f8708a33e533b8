# PAA R-101, the larger network of the paper's tables on COCO.
_base_ = "_base_/paa_r101.py"
