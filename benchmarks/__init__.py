"""What everything costs, against the alternatives: `python -m benchmarks`."""

import pipeline  # noqa: F401  provides mmcv's ops, before anything here imports mmdet
