"""Networks from mmdet configs, and what the pipeline reads from a config."""

import copy
from pathlib import Path
from typing import Any

from mmdet.models.detectors import SingleStageDetector
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config, ConfigDict

from pipeline.heads.registry import family_of_model
from pipeline.project.errors import UserError

register_all_modules(init_default_scope=True)


def load_model_config(file: str | Path, num_classes: int | None = None) -> ConfigDict:
    """The `model` of an mmdet config file, with a head of a family that is known.

    Args:
        file: an mmdet config; all but its `model` is ignored.
        num_classes: replaces the number of classes of the head.

    Raises:
        UserError: the file is missing or broken, or its head is of no known family.
    """
    try:
        config = Config.fromfile(str(file))
    except FileNotFoundError:
        raise UserError(f"the config {file} does not exist") from None
    except Exception as error:  # a config is Python code: it can raise anything
        raise UserError(f"the config {file} can't be read: {error}") from error
    model = config.get("model")
    family_of_model(model, str(file))
    for name in ("train_cfg", "test_cfg"):
        # mmdet puts them there when it builds; kept, they would mix with other ones.
        model.bbox_head.pop(name, None)
    if num_classes is not None:
        model.bbox_head.num_classes = num_classes
    return model


def without_downloads(model: ConfigDict) -> ConfigDict:
    """The same model with no pretrained backbone to fetch, for weights that are loaded later."""
    model = ConfigDict(model.copy())
    model.backbone = ConfigDict(model.backbone.copy())
    model.backbone.init_cfg = None
    return model


def without_waits(model: ConfigDict) -> ConfigDict:
    """The same model, which does not wait until the images of a batch are on its device."""
    preprocessor = model.get("data_preprocessor")
    if not preprocessor:
        return model
    return ConfigDict(model, data_preprocessor=dict(preprocessor, non_blocking=True))


def build_detector(model: ConfigDict) -> SingleStageDetector:
    """The network of a model config.

    Raises:
        UserError: mmdet can't build it.
    """
    try:
        detector: SingleStageDetector = MODELS.build(copy.deepcopy(without_waits(model)))
    except (TypeError, KeyError, AssertionError, ValueError) as error:
        raise UserError(f"mmdet can't build the model of type {model.type!r}: {error}") from error
    return detector


def preprocessing(model: ConfigDict) -> dict[str, Any]:
    """What a network does to an image before its first layer, as plain values."""
    given = model.data_preprocessor
    return {
        "mean": list(given.get("mean", [])),
        "std": list(given.get("std", [])),
        "bgr_to_rgb": bool(given.get("bgr_to_rgb", False)),
        "pad_value": given.get("pad_value", 0),
        "pad_size_divisor": int(given.get("pad_size_divisor", 1)),
    }
