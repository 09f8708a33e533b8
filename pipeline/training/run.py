"""Training a detector with mmengine's Runner: the teacher, and every student."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import torch
from mmengine.config import ConfigDict
from mmengine.device import get_device
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor, nn
from tqdm import tqdm

from pipeline.data.dataset import DataInfo
from pipeline.detector.preprocessor import with_few_copies
from pipeline.loading.collate import collate_views
from pipeline.loading.replay import Attachments, view_pipeline
from pipeline.project.errors import UserError
from pipeline.project.params import Training
from pipeline.training.distributed import is_first, join, part_of, wait_for_all
from pipeline.views.plan import ViewPlan


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


def train(
    *,
    name: str,
    model: ConfigDict,
    training: Training,
    plan: ViewPlan,
    data: DataInfo,
    run_folder: Path,
    labels: Attachments | None = None,
    inputs_digest: str = "",
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Train a detector on views of a data set; an interrupted training continues.

    Under `torchrun` each process trains on its part of every batch.

    Args:
        name: of the network, for the record.
        model: its mmdet config.
        training: epochs, optimiser, seed and so on.
        plan: the views that images show.
        data: the data set; its training images are used.
        run_folder: keeps checkpoints while the training runs; for the caller to remove once the
            result is saved.
        labels: what attaches cached labels to a sample.
        inputs_digest: of what else decides the result: those labels, weights to start from.

    Returns:
        The weights, and what the training cost: steps, seconds, curves.

    Raises:
        UserError: mixed precision without a GPU, or a batch that processes can't share.
    """
    if training.amp and not torch.cuda.is_available():
        raise UserError("training.amp: mixed precision needs a GPU, and there is none here")
    labels = labels or Attachments()
    processes = join()
    batch_size = part_of(training.batch_size, processes)
    decides_result = {
        "processes": processes,
        "code": _code_digest(),
        "model": model.to_dict(),
        "training": training.model_dump(exclude={"workers", "checkpoint_every"}),
        "views": repr(plan),
        "classes": data.classes,
        "annotations": data.train.annotations_digest,
        "images": data.train.images_digest,
        "inputs": inputs_digest,
    }
    if is_first():
        _start_or_continue(run_folder, decides_result)
    wait_for_all()
    runner = Runner(
        default_scope="mmdet",
        # mmengine adds the second, which two trainings of a process may share, and their record.
        experiment_name=f"{name}_{uuid4().hex}",
        model=with_few_copies(model),
        work_dir=str(run_folder),
        train_dataloader=dict(
            batch_size=batch_size,
            num_workers=training.workers,
            persistent_workers=training.workers > 0,
            sampler=dict(type="ViewSampler", seed=training.seed),
            batch_sampler=dict(type="AspectRatioBatchSampler"),
            collate_fn=dict(type=collate_views),
            dataset=dict(
                type="ViewDataset",
                plan=plan,
                annotations=str(data.train.annotations),
                images=str(data.train.images_folder),
                classes=data.classes,
                pipeline=view_pipeline(labels),
            ),
        ),
        train_cfg=dict(by_epoch=True, max_epochs=training.epochs),
        optim_wrapper=optim_wrapper(training),
        param_scheduler=_schedule(training),
        default_hooks=dict(
            logger=None,
            checkpoint=dict(
                type="CheckpointHook", interval=training.checkpoint_every, max_keep_ckpts=2
            ),
        ),
        custom_hooks=[
            dict(type="MemoryFormatHook", training=training),
            dict(type="ProgressHook", name=name),
            dict(type="SyncBuffersHook"),
        ],
        randomness=dict(seed=training.seed),
        visualizer=dict(type="Visualizer", vis_backends=[]),
        log_level="ERROR",
        resume=(run_folder / "last_checkpoint").is_file(),
        launcher="none" if processes == 1 else "pytorch",
        cfg=dict(model_wrapper_cfg=_wrapper()),
    )
    runner.train()
    network = runner.model.module if is_model_wrapper(runner.model) else runner.model
    state = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
    return state, _record(runner, training)


def _code_digest() -> str:
    """sha256 of this package: a training that was begun with other code is not continued."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _start_or_continue(run_folder: Path, decides_result: dict[str, Any]) -> None:
    """Empty the run folder, unless it holds a run with the same settings and inputs."""
    text = json.dumps(decides_result, sort_keys=True, default=str)
    mark = run_folder / "run.sha256"
    digest = hashlib.sha256(text.encode()).hexdigest()
    if not mark.is_file() or mark.read_text() != digest:
        shutil.rmtree(run_folder, ignore_errors=True)
        run_folder.mkdir(parents=True)
        mark.write_text(digest)


def _wrapper() -> dict[str, Any]:
    """The mmengine config of what has the processes of `torchrun` share gradients."""
    wrapper: dict[str, Any] = dict(type="MMDistributedDataParallel", broadcast_buffers=False)
    if not torch.cuda.is_available():
        wrapper["device_ids"] = None
    return wrapper


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


def _schedule(training: Training) -> list[dict[str, Any]]:
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


def _record(runner: Runner, training: Training) -> dict[str, Any]:
    """What the training cost; the counts go through checkpoints, so a resumed run has all."""
    seconds, _ = runner.message_hub.get_scalar("train/time").data
    fallbacks = runner.message_hub.log_scalars.get("train/fallbacks")
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
        # Objects whose costs in a step allowed no mixture: see `Positives`.
        "fallbacks": int(fallbacks.data[0].sum()) if fallbacks else 0,
        "curves": curves,
    }
