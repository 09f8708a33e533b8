"""Model folders: a network's plain mmdet config, its weights, and how it was trained.

`config.py` holds `model`, `weights.pth` a state dict that mmdet loads, `training.json` what the
training cost. The folder appears whole or not at all.
"""

import json
from pathlib import Path
from typing import Any

import torch
from mmdet.models.detectors import SingleStageDetector
from mmengine.config import Config, ConfigDict
from torch import Tensor

from pipeline.detector.build import build_detector, load_model_config, without_downloads
from pipeline.detector.checkpoint import load_weights, read_weights
from pipeline.project.errors import UserError
from pipeline.project.files import whole_folder

CONFIG = "config.py"
WEIGHTS = "weights.pth"
TRAINING = "training.json"


def save_model(
    folder: Path, model: ConfigDict, state: dict[str, Tensor], training: dict[str, Any]
) -> None:
    """Write a model folder, replacing the one that is there."""
    with whole_folder(folder) as building:
        Config(dict(model=model)).dump(building / CONFIG)
        torch.save({"state_dict": state}, building / WEIGHTS)
        (building / TRAINING).write_text(json.dumps(training, indent=1))


def load_model(folder: Path, remedy: str) -> tuple[SingleStageDetector, ConfigDict]:
    """The network of a model folder, in eval mode on the CPU, and its config.

    Args:
        folder: as written by `save_model`.
        remedy: the command that makes the folder, for the error.

    Raises:
        UserError: there is no such folder.
    """
    if not (folder / CONFIG).is_file():
        raise UserError(f"{folder} is missing; run `{remedy}`")
    model = load_model_config(folder / CONFIG)
    detector = build_detector(without_downloads(model))
    load_weights(detector, read_weights(folder / WEIGHTS), folder / WEIGHTS)
    return detector.eval(), model
