"""Where a default of the library comes from: `python -m studies`."""

import pipeline  # noqa: F401  provides mmcv's ops, before anything here imports mmdet
