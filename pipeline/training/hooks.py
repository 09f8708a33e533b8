"""What happens beside the steps of a training."""

from pathlib import Path
from typing import Any

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from tqdm import tqdm

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
