"""PAA detectors from mmdet configs: what the pipeline reads from a config, and the networks."""

from pathlib import Path
from typing import Any

import torch
from mmdet.models.dense_heads import PAAHead
from mmdet.models.detectors import PAA
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config, ConfigDict

import pipeline.heads.objectness  # noqa: F401  registers the head that configs name
from pipeline.detector.preprocessor import with_few_copies
from pipeline.project.errors import UserError
from pipeline.views.priors import PriorGrid

register_all_modules(init_default_scope=True)


def load_model_config(file: str | Path, num_classes: int | None = None) -> ConfigDict:
    """The `model` of an mmdet config file, which must be a PAA.

    Args:
        file: an mmdet config; all but its `model` is ignored.
        num_classes: replaces the number of classes of the head.

    Raises:
        UserError: the file is missing or broken, or its model is no PAA.
    """
    try:
        config = Config.fromfile(str(file))
    except FileNotFoundError:
        raise UserError(f"the config {file} does not exist") from None
    except Exception as error:  # a config is Python code: it can raise anything
        raise UserError(f"the config {file} can't be read: {error}") from error
    model = config.get("model")
    if not model or model.get("type") != "PAA" or "bbox_head" not in model:
        found = f"type {model.get('type')!r}" if model else "no model"
        raise UserError(f"the config {file} must hold a model of type 'PAA', found {found}")
    if num_classes is not None:
        model.bbox_head.num_classes = num_classes
    return model


def without_downloads(model: ConfigDict) -> ConfigDict:
    """The same model with no pretrained backbone to fetch, for weights that are loaded later."""
    model = ConfigDict(model.copy())
    model.backbone = ConfigDict(model.backbone.copy())
    model.backbone.init_cfg = None
    return model


def build_detector(model: ConfigDict) -> PAA:
    """The network of a model config.

    Raises:
        UserError: mmdet can't build it.
    """
    try:
        detector: PAA = MODELS.build(with_few_copies(model))
    except (TypeError, KeyError, AssertionError, ValueError) as error:
        raise UserError(f"mmdet can't build the model of type {model.type!r}: {error}") from error
    return detector


def prior_grid(head: PAAHead) -> PriorGrid:
    """The grid of a head's priors.

    Raises:
        UserError: the head's anchors are not one square per cell, as PAA's are.
    """
    generator = head.prior_generator
    strides = tuple(stride[0] for stride in generator.strides)
    side = float(generator.base_anchors[0][0, 2] - generator.base_anchors[0][0, 0])
    grid = PriorGrid(strides=strides, scale=side / strides[0])
    probe = (3 * max(strides), 2 * max(strides))
    anchors = generator.grid_priors(grid.level_shapes(probe), device="cpu")
    ours = grid.priors(probe).boxes
    if ours.shape != torch.cat(anchors).shape or not torch.equal(ours, torch.cat(anchors)):
        raise UserError(
            "the head's anchor generator must give one square anchor per cell, as PAA's does; "
            f"found {generator}"
        )
    return grid


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
