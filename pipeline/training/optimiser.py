"""How a network's weights lie in memory, change in a step, and by how much."""

from typing import Any

import torch
from mmengine.device import get_device
from torch import nn

from pipeline.training.settings import Training


def set_memory_format(network: nn.Module, training: Training) -> None:
    """Lay out a network's weights as its training wants them; its feature maps then follow."""
    channels_last = training.channels_last
    if channels_last is None:
        channels_last = get_device() == "cpu"
    if channels_last:
        # mmdet's LAD has a `to` that knows devices alone.
        nn.Module.to(network, memory_format=torch.channels_last)


def optim_wrapper(training: Training) -> dict[str, Any]:
    """The mmengine config of the optimiser."""
    optimizer = dict(
        type=training.optimizer, lr=training.lr, weight_decay=training.weight_decay, fused=True
    )
    if training.optimizer == "SGD":
        optimizer["momentum"] = 0.9
    wrapper: dict[str, Any] = dict(
        type="AmpOptimWrapper" if training.amp else "OptimWrapper", optimizer=optimizer
    )
    if training.clip_grad_norm:
        wrapper["clip_grad"] = dict(max_norm=training.clip_grad_norm)
    return wrapper


def schedule(training: Training) -> list[dict[str, Any]]:
    """The mmengine configs of how the learning rate changes."""
    epochs = training.epochs
    main: dict[str, Any]
    if training.schedule == "cosine":
        main = dict(
            type="CosineAnnealingLR", T_max=epochs, by_epoch=True, convert_to_iter_based=True
        )
    else:
        milestones = sorted({max(1, round(epochs * part)) for part in (2 / 3, 11 / 12)})
        main = dict(type="MultiStepLR", milestones=milestones, gamma=0.1, by_epoch=True)
    if not training.warmup_steps:
        return [main]
    warmup = dict(type="LinearLR", start_factor=1e-3, by_epoch=False, end=training.warmup_steps)
    return [warmup, main]
