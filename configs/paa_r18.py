# PAA R-18, the small network of the paper's table of heads.
_base_ = "_base_/paa_r18.py"
