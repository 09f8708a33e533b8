"""Model folders: a network's plain mmdet config, its weights, and how it was trained.

`config.py` holds `model`, `weights.pth` a state dict that mmdet loads, `training.json` what the
training cost. The folder appears whole or not at all.
"""

import hashlib
import json
import pickle
from pathlib import Path
from typing import Any

import torch
from mmdet.models.detectors import SingleStageDetector
from mmengine.config import Config, ConfigDict
from torch import Tensor

from pipeline.detector.build import build_detector, load_model_config, without_downloads
from pipeline.project.errors import UserError
from pipeline.project.files import whole_folder

CONFIG = "config.py"
WEIGHTS = "weights.pth"
TRAINING = "training.json"


def read_weights(file: Path, trust: bool = False) -> dict[str, Tensor]:
    """The state dict of a checkpoint, without running code from the file.

    Args:
        file: a state dict, or a dict with a `state_dict` as mmengine saves it.
        trust: unpickle whatever the file holds. It can run any code.

    Raises:
        UserError: the file is missing or no checkpoint, or holds more than tensors and plain
            values and is not trusted.
    """
    if not file.is_file():
        raise UserError(f"the checkpoint {file} does not exist")
    try:
        content = torch.load(file, map_location="cpu", weights_only=not trust)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"the checkpoint {file} holds more than tensors and plain values ({_first(error)}); "
            "if it comes from a source that you trust, set trust_checkpoint: true beside it"
        ) from None
    except Exception as error:  # torch.load raises anything for a file that is no checkpoint
        raise UserError(f"{file} is not a checkpoint: {_first(error)}") from None
    if not isinstance(content, dict):
        raise UserError(f"{file} is not a checkpoint: expected a dict, got {type(content)}")
    state: dict[str, Tensor] = content.get("state_dict", content)
    return state


def _first(error: Exception) -> str:
    """The line of an unpickling error that says what was found."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    named = [line for line in lines if "GLOBAL" in line or "Unsupported" in line]
    return (named or lines or [type(error).__name__])[0]


def load_weights(
    detector: SingleStageDetector, state: dict[str, Tensor], source: Path | str
) -> None:
    """Put weights into a network.

    Raises:
        UserError: a weight is missing, left over, or of another shape.
    """
    own = detector.state_dict()
    problems = [f"{name} is missing" for name in own if name not in state]
    problems += [f"{name} is not part of the model" for name in state if name not in own]
    problems += [
        f"{name} has the shape {tuple(state[name].shape)}, the model's is {tuple(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise UserError(
            f"the weights in {source} do not fit the model (its config and number of classes): "
            + "; ".join(problems[:5])
            + more
        )
    detector.load_state_dict(state)


def weights_digest(state: dict[str, Tensor]) -> str:
    """sha256 of the tensors by name: the same for equal weights in different files."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


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
