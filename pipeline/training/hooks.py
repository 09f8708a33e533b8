"""What happens beside the steps of a training."""

import math
from pathlib import Path
from typing import Any

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from tqdm import tqdm

from pipeline.project.errors import UserError
from pipeline.training.distributed import is_first
from pipeline.training.optimiser import set_memory_format
from pipeline.training.run_folder import discard_old_run, has_checkpoint
from pipeline.training.settings import Training


@HOOKS.register_module()
class ProgressHook(Hook):
    """Shows steps, their rate, the time left and the loss.

    Args:
        name: of the network.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def before_train(self, runner: Runner) -> None:
        """Start the bar where the training starts or continues."""
        self.bar = tqdm(
            total=runner.max_iters,
            initial=runner.iter,
            desc=self.name,
            unit="step",
            mininterval=2,
            disable=not is_first(),
        )

    def after_train_iter(self, runner: Runner, *_: Any, **__: Any) -> None:
        """Count a step."""
        self.bar.set_postfix(
            loss=f"{runner.message_hub.get_scalar('train/loss').current():.3f}", refresh=False
        )
        self.bar.update()

    def after_train(self, runner: Runner) -> None:
        """End the bar."""
        self.bar.close()


@HOOKS.register_module()
class FiniteLossHook(Hook):
    """Stops a training whose loss is NaN or infinite: what it learns from there on is nothing.

    Args:
        name: of the network.
        folder: of the run, whose checkpoints stay.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.folder = folder

    def after_train_iter(self, runner: Runner, *_: Any, **__: Any) -> None:
        """Look at the step's losses, which mmengine has fetched from the device.

        Raises:
            UserError: the loss is not finite.
        """
        logged = runner.message_hub.log_scalars
        if math.isfinite(logged["train/loss"].current()):
            return
        losses = {
            key.removeprefix("train/"): value.current()
            for key, value in logged.items()
            if "loss" in key
        }
        parts = ", ".join(f"{key} {value}" for key, value in losses.items() if key != "loss")
        raise UserError(
            f"the training of {self.name} has diverged: in step {runner.iter + 1} (epoch "
            f"{runner.epoch + 1}) its loss is {losses['loss']} ({parts}); lower training.lr, raise "
            "training.warmup_steps, or set training.clip_grad_norm (such as 35); the checkpoints "
            f"of the epochs before stay in {self.folder}"
        )


@HOOKS.register_module()
class MemoryFormatHook(Hook):
    """Lays out the network's weights as `set_memory_format` does, once they have their values.

    Random numbers fill weights as they lie, so a seed would else mean others in each format.

    Args:
        training: says in which format.
    """

    def __init__(self, training: Training) -> None:
        self.training = training

    def before_train(self, runner: Runner) -> None:
        """Lay them out where the training starts or continues."""
        set_memory_format(runner.model, self.training)


@HOOKS.register_module()
class DiscardOldRunHook(Hook):
    """Removes the run that this one has replaced, once this one has a checkpoint.

    Args:
        folder: of this run.
    """

    priority = "LOWEST"  # after the hook that saves the checkpoint

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def after_train_epoch(self, runner: Runner) -> None:
        """Look for the checkpoint."""
        if is_first() and has_checkpoint(self.folder):
            discard_old_run(self.folder)
