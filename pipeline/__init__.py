"""Provides the compiled ops of mmcv where it has none, before anybody imports mmcv.

mmcv imports its compiled ops as one module, `mmcv._ext`, which the plain Python package lacks.
Python asks the finder below last: where mmcv has compiled ops, those are found first.
"""

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

_NAME = "mmcv._ext"


class _StandIn:
    """Finds and loads `pipeline.detector.mmcv_ops` as mmcv's module of compiled ops."""

    @classmethod
    def find_spec(
        cls, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(name, cls) if name == _NAME else None  # type: ignore[arg-type]

    @staticmethod
    def create_module(spec: ModuleSpec) -> ModuleType:
        from pipeline.detector.mmcv_ops import stand_in

        return stand_in(spec.name)

    @staticmethod
    def exec_module(module: ModuleType) -> None:
        """Nothing is left to run."""


sys.meta_path.append(_StandIn)
