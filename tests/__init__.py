import pipeline  # noqa: F401  provides what mmcv lacks, before a test imports mmdet
