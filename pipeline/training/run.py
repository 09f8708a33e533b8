"""Training a detector with mmengine's Runner: the teacher, and every student."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import torch
from mmengine.config import ConfigDict
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import Tensor

import pipeline.loading.sampler
import pipeline.training.hooks  # noqa: F401  registers what the Runner's config names
from pipeline.data.dataset import CheckedSplit
from pipeline.detector.build import without_waits
from pipeline.detector.checkpoint import require_finite
from pipeline.detector.small_views import large_enough
from pipeline.loading.collate import collate_views
from pipeline.loading.dataset import view_dataset_config
from pipeline.loading.transforms import NO_LABELS, LabelTransforms
from pipeline.project.code import code_digest
from pipeline.project.errors import UserError
from pipeline.project.full_memory import full_memory
from pipeline.project.machine import loader_processes
from pipeline.training.distributed import is_first, join, part_of, wait_for_all
from pipeline.training.optimiser import optim_wrapper, schedule
from pipeline.training.run_folder import newest_checkpoint, start_or_continue
from pipeline.training.settings import Training
from pipeline.views.plan import ViewPlan


@dataclass(frozen=True)
class TrainingRun:
    """A training, and all that its result depends on.

    Attributes:
        name: of the network, for the progress bar.
        model: its mmdet config.
        training: epochs, optimiser, seed and so on.
        plan: the views that images show.
        split: whose images they are.
        folder: keeps checkpoints while the training runs; for the caller to remove
            (`discard_run`) once the result is saved.
        code: the modules that start it, by full name; a run that was begun with other code of
            theirs, or of what they import, is not continued.
        labels: what attaches labels to a sample.
        first_weights: what the network begins with, of some of its layers or all; None for what
            its config says.
        inputs: plain values that name what else decides the result: those labels and weights.
    """

    name: str
    model: ConfigDict
    training: Training
    plan: ViewPlan
    split: CheckedSplit
    folder: Path
    code: tuple[str, ...]
    labels: LabelTransforms = NO_LABELS
    first_weights: dict[str, Tensor] | None = None
    inputs: Any = None

    def decides_result(self, processes: int) -> dict[str, Any]:
        """What must stay the same for an interrupted run to be continued.

        Args:
            processes: of the training.
        """
        return {
            "processes": processes,
            "code": code_digest(*self.code),
            "model": self.model.to_dict(),
            "training": self.training.model_dump(exclude={"workers", "checkpoint_every"}),
            "views": self.plan.plain(),
            "classes": self.split.classes,
            "annotations": self.split.annotations_digest,
            "images": self.split.images_digest,
            "inputs": self.inputs,
        }


def train(run: TrainingRun) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Train a detector on views of a data set; an interrupted training continues.

    Under `torchrun` each process trains on its part of every batch.

    Returns:
        The weights, and what the training cost: steps, seconds, curves.

    Raises:
        UserError: mixed precision without a GPU, a batch that processes can't share, views that are
            too small for the network, or a loss that is not finite.
    """
    training = run.training
    if training.amp and not torch.cuda.is_available():
        raise UserError("training.amp: mixed precision needs a GPU, and there is none here")
    processes = join()
    batch_size = part_of(training.batch_size, processes)
    workers = loader_processes(training.workers)
    if is_first():
        start_or_continue(run.folder, run.decides_result(processes))
    wait_for_all()
    checkpoint = newest_checkpoint(run.folder)
    start = checkpoint or _save_first_weights(run)
    runner = Runner(
        default_scope="mmdet",
        # mmengine adds the second, which two trainings of a process may share, and their record.
        experiment_name=f"{run.name}_{uuid4().hex}",
        model=without_waits(run.model),
        work_dir=str(run.folder),
        train_dataloader=dict(
            batch_size=batch_size,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
            sampler=dict(type="ViewSampler", seed=training.seed),
            batch_sampler=dict(type="AspectRatioBatchSampler"),
            collate_fn=dict(type=collate_views),
            dataset=view_dataset_config(run.split, run.plan, run.labels),
        ),
        train_cfg=dict(by_epoch=True, max_epochs=training.epochs),
        optim_wrapper=optim_wrapper(training),
        param_scheduler=schedule(training),
        default_hooks=dict(
            logger=None,
            checkpoint=dict(
                type="CheckpointHook", interval=training.checkpoint_every, max_keep_ckpts=2
            ),
        ),
        custom_hooks=[
            dict(type="MemoryFormatHook", training=training),
            dict(type="ProgressHook", name=run.name),
            dict(type="FiniteLossHook", name=run.name, folder=run.folder),
            dict(type="SyncBuffersHook"),
            dict(type="DiscardOldRunHook", folder=run.folder),
        ],
        randomness=dict(seed=training.seed),
        visualizer=dict(type="Visualizer", vis_backends=[]),
        log_level="ERROR",
        load_from=start and str(start),
        resume=checkpoint is not None,
        launcher="none" if processes == 1 else "pytorch",
        cfg=dict(model_wrapper_cfg=_wrapper()),
    )
    remedy = "lower training.batch_size, or share it among GPUs with torchrun"
    with full_memory(remedy), large_enough(runner.model, "training.batch_size"):
        runner.train()
    network = runner.model.module if is_model_wrapper(runner.model) else runner.model
    state = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
    require_finite(state, f"the weights of {run.name} after its last step")
    return state, _cost(runner, training)


def describe_cost(cost: dict[str, Any]) -> list[str]:
    """What a training cost, as lines of text.

    Args:
        cost: as `train` returns it.
    """
    lines = [
        f"trained {cost['steps']} steps, {cost['seconds_per_step']:.3f} s a step, "
        f"{cost['total_seconds']:.0f} s in all"
    ]
    if cost["fallbacks"]:
        lines.append(f"{cost['fallbacks']} times an object's costs allowed no mixture")
    if cost["left_out"]:
        lines.append(
            f"{cost['left_out']} times a positive of the teacher was left out: see heads.md"
        )
    return lines


def _save_first_weights(run: TrainingRun) -> Path | None:
    """The weights that a training begins with, as a file that mmengine loads."""
    if run.first_weights is None:
        return None
    file = run.folder / "first_weights.pth"
    if is_first():
        torch.save({"state_dict": run.first_weights}, file)
    wait_for_all()
    return file


def _wrapper() -> dict[str, Any]:
    """The mmengine config of what has the processes of `torchrun` share gradients."""
    wrapper: dict[str, Any] = dict(type="MMDistributedDataParallel", broadcast_buffers=False)
    if not torch.cuda.is_available():
        wrapper["device_ids"] = None
    return wrapper


def _cost(runner: Runner, training: Training) -> dict[str, Any]:
    """What the training cost; the counts go through checkpoints, so a resumed run has all."""
    seconds, _ = runner.message_hub.get_scalar("train/time").data
    curves: dict[str, list[float]] = {"step": list(range(1, len(seconds) + 1))}
    for key, scalar in runner.message_hub.log_scalars.items():
        if "loss" in key or key.startswith("train/taught_by_"):
            curves[key.removeprefix("train/")] = [round(float(v), 5) for v in scalar.data[0]]
    return {
        "parameters": sum(p.numel() for p in runner.model.parameters()),
        "epochs": training.epochs,
        "steps": len(seconds),
        "batch_size": training.batch_size,
        "images": len(runner.train_dataloader.dataset.image_ids()),
        "seconds_per_step": float(np.median(seconds)),
        "total_seconds": float(np.sum(seconds)),
        # Objects whose costs in a step allowed no mixture, and a teacher's positives that the head
        # can't learn.
        "fallbacks": _total(runner, "fallbacks"),
        "left_out": _total(runner, "left_out"),
        "curves": curves,
    }


def _total(runner: Runner, count: str) -> int:
    """What a training's steps have counted, in all; 0 for what they don't count."""
    logged = runner.message_hub.log_scalars.get(f"train/{count}")
    return int(logged.data[0].sum()) if logged else 0
