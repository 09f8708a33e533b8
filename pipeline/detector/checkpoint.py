"""Checkpoints of any maker: their weights, read without running code, and put into a network."""

import hashlib
import pickle
import zipfile
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from mmdet.models.detectors import SingleStageDetector
from torch import Tensor

from pipeline.project.errors import UserError

WEIGHT_KEYS = ("state_dict", "model", "model_state_dict")
"""Under which of them a checkpoint has its weights, where it has more."""
PREFIXES = ("module.", "_orig_mod.", "model.")
"""What data parallelism, torch.compile and Lightning put before all names."""
EMA = "ema_"
"""mmdet 2 keeps the average's counterpart of each weight under such a name; the average itself
stands where the weight would."""
OTHER_CLASSES = (
    "; if it knows other classes, have a teacher's training begin from it: teacher.load_from "
    "instead of teacher.checkpoint; layers of another shape are new then"
)
LISTED = 5

_NO_CHECKPOINTS = {
    b"version https://git-lfs": "a pointer of Git LFS; fetch the file itself: git lfs pull",
    b"<": "a web page or XML; download the file again",
    b"{": "text (JSON), not weights",
    b"\x1f\x8b": "compressed by gzip; unpack it first",
    b"BZh": "compressed by bzip2; unpack it first",
    b"\xfd7zXZ": "compressed by xz; unpack it first",
    b"\x89HDF": "in HDF5 format, not one of PyTorch",
    b"\x08": "in ONNX's format, not one of PyTorch",
}
"""How files begin that are taken for checkpoints."""


def read_weights(file: Path, trust: bool = False) -> dict[str, Tensor]:
    """The weights of a checkpoint, without running code from the file.

    Args:
        file: a state dict, or a dict that has one under a usual name; of torch or safetensors.
        trust: unpickle whatever the file holds. It can run any code.

    Returns:
        Tensors by the names that mmdet gives them.

    Raises:
        UserError: the file is missing or no checkpoint, or holds more than tensors and plain
            values and is not trusted.
    """
    if not file.is_file():
        raise UserError(f"the checkpoint {file} does not exist")
    content = _read_safetensors(file) if file.suffix == ".safetensors" else _unpickle(file, trust)
    if not isinstance(content, dict):
        raise UserError(
            f"{file} is not a checkpoint: expected a dict of weights, got {type(content).__name__}"
        )
    under = next((key for key in WEIGHT_KEYS if key in content), None)
    weights = content if under is None else content[under]
    where = f" under {under!r}" if under else ""
    if not isinstance(weights, dict) or not weights:
        raise UserError(
            f"{file} is not a checkpoint: expected weights{where}, got "
            f"{'none' if isinstance(weights, dict) else type(weights).__name__}"
        )
    for name, weight in weights.items():
        if not isinstance(weight, Tensor):
            raise UserError(
                f"{file} is not a checkpoint of a network: expected tensors{where}, but "
                f"{name!r} is {type(weight).__name__}; it has {', '.join(map(repr, content))[:200]}"
            )
    return _usual_names(weights)


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(file)
    except Exception as error:  # what Rust says of a broken file
        raise UserError(_no_checkpoint(file, error)) from None


def _unpickle(file: Path, trust: bool) -> Any:
    try:
        return torch.load(file, map_location="cpu", weights_only=not trust)
    except Exception as error:  # torch.load raises anything for a file that is no checkpoint
        if isinstance(error, pickle.UnpicklingError) and not trust and _is_pickled(file):
            raise UserError(
                f"the checkpoint {file} holds more than tensors and plain values "
                f"({_first(error)}); if it comes from a source that you trust, set "
                "trust_checkpoint: true beside it"
            ) from None
        raise UserError(_no_checkpoint(file, error)) from None


def _is_pickled(file: Path) -> bool:
    """Whether trust could help: a whole file of torch's, old or new."""
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as parts:
            return any(name.endswith("data.pkl") for name in parts.namelist())
    with file.open("rb") as start:
        return start.read(2) in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def _no_checkpoint(file: Path, error: Exception) -> str:
    with file.open("rb") as start:
        first = start.read(64)
    known = (what for begin, what in _NO_CHECKPOINTS.items() if first.lstrip().startswith(begin))
    said = _first(error).partition(". ")[0]
    broken = f"broken or cut off ({type(error).__name__}: {said})" if first else "empty"
    return f"{file} is not a checkpoint: it is {next(known, broken)}"


def _first(error: Exception) -> str:
    """The line of an unpickling error that says what was found."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    named = [line for line in lines if "GLOBAL" in line or "Unsupported" in line]
    return (named or lines or [type(error).__name__])[0]


def _usual_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights without what wrappers put before their names, and without EMA's counterparts."""
    weights = {name: weight for name, weight in weights.items() if not name.startswith(EMA)}
    while prefix := next((one for one in PREFIXES if all(n.startswith(one) for n in weights)), ""):
        weights = {name.removeprefix(prefix): weight for name, weight in weights.items()}
    return weights


def load_weights(
    detector: SingleStageDetector, state: dict[str, Tensor], source: Path | str
) -> None:
    """Put weights into a network.

    Raises:
        UserError: a weight is missing, left over, of another shape, or not finite.
    """
    own = detector.state_dict()
    shapes = [
        f"{name} has the shape {tuple(state[name].shape)}, the model's is {tuple(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    problems = [f"{name} is missing" for name in own if name not in state]
    problems += [f"{name} is not part of the model" for name in state if name not in own]
    if problems or shapes:
        raise UserError(
            f"the weights in {source} do not fit the model (its config and number of classes): "
            + _listed(problems + shapes)
            + ("" if problems else OTHER_CLASSES)
        )
    require_finite(state, f"the weights in {source}")
    detector.load_state_dict(state)


def require_finite(state: dict[str, Tensor], whose: str) -> None:
    """Refuse weights that are NaN or infinite.

    Raises:
        UserError: some are; the message names the first layers.
    """
    broken = [name for name, weight in state.items() if not weight.isfinite().all()]
    if broken:
        raise UserError(
            f"{whose} are not finite in {len(broken)} of {len(state)} layers "
            f"({_listed(broken)}): its training has diverged; train it again with a lower "
            "learning rate (training.lr), a longer training.warmup_steps or "
            "training.clip_grad_norm"
        )


def matching_weights(
    detector: SingleStageDetector, state: dict[str, Tensor], source: Path | str
) -> dict[str, Tensor]:
    """The weights that have a place of the same shape in a network, to begin a training with.

    Raises:
        UserError: none of its backbone has.
    """
    own = detector.state_dict()
    fitting = {
        name: weight
        for name, weight in state.items()
        if name in own and own[name].shape == weight.shape
    }
    if not any(name.startswith("backbone.") for name in fitting):
        raise UserError(
            f"no weight of the backbone in {source} fits the model: it has "
            f"{_listed(list(state))}; the model's are {_listed(list(own))}"
        )
    require_finite(fitting, f"the weights in {source}")
    return fitting


def weights_digest(state: dict[str, Tensor]) -> str:
    """sha256 of the tensors by name: the same for equal weights in different files."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _listed(lines: list[str]) -> str:
    more = f" and {len(lines) - LISTED} more" if len(lines) > LISTED else ""
    return "; ".join(lines[:LISTED]) + more
