# PAA R-50, the student and teacher of the paper's tables on COCO.
_base_ = "_base_/paa.py"
