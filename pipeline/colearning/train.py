"""Trains two networks together (CoLAD), and saves each as a model of its own."""

from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import ConfigDict

from pipeline.colearning.network import CoLAD, learning_together
from pipeline.colearning.settings import CoLearning, Network
from pipeline.data.dataset import load_split
from pipeline.detector.build import build_detector, load_model_config, without_downloads
from pipeline.detector.checkpoint import load_weights, read_weights, weights_digest
from pipeline.detector.model_folder import WEIGHTS, save_model
from pipeline.project.paths import Paths
from pipeline.training.distributed import is_first
from pipeline.training.run import TrainingRun, train
from pipeline.training.run_folder import discard_run
from pipeline.training.settings import Training
from pipeline.views.plan import view_plan
from pipeline.views.settings import Views


def train_colearn(
    name: str, settings: CoLearning, training: Training, views: Views, paths: Paths
) -> dict[str, Any]:
    """Train two networks together and write a model folder for each.

    Args:
        name: of the co-learning.
        settings: which networks, and who teaches.
        training: how students are trained, where it has no settings of its own.
        views: which views there are.
        paths: where the data are, and where the models go.

    Returns:
        What the training cost.

    Raises:
        UserError: data are missing, a checkpoint does not fit its network, or the networks do not
            fit each other.
    """
    split = load_split(paths, "train")
    models = [load_model_config(net.config, len(split.classes)) for net in settings.networks]
    starts = [_start(*each) for each in zip(settings.networks, models, strict=True)]
    names = [network.name for network in settings.networks]
    training = settings.training.over(training)
    run = TrainingRun(
        name=name,
        model=ConfigDict(
            type=CoLAD.__name__,
            names=names,
            networks=[
                learning_together(without_downloads(model) if start else model)
                for model, start in zip(models, starts, strict=True)
            ],
            criterion=settings.criterion,
            per_level=settings.per == "level",
            checkpoints=[start and start[0] for start in starts],
        ),
        training=training,
        plan=view_plan(views),
        split=split,
        folder=paths.run(f"colearn.{name}"),
        code=(__name__,),
        inputs=[start and start[1] for start in starts],
    )
    state, cost = train(run)
    for index, (network, model) in enumerate(zip(settings.networks, models, strict=True)):
        prefix = f"networks.{index}."
        own = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        record = cost | {
            "name": f"{name}.{network.name}",
            "method": "colearn",
            "labels": "shared",
            "assigner": "batched",
            "config": network.config,
            "settings": settings.model_dump(mode="json", exclude={"training"})
            | {"training": training.model_dump(mode="json"), "network": network.name},
            "parameters": sum(p.numel() for p in build_detector(model).parameters()),
            "curves": _own_curves(cost["curves"], network.name),
        }
        if is_first():
            save_model(paths.model(record["name"]), model, own, record)
    if is_first():
        discard_run(run.folder)
    return cost


def _start(network: Network, model: ConfigDict) -> tuple[dict[str, Any], str] | None:
    """What `read_weights` reads a network's checkpoint from, and the digest of its weights."""
    if network.checkpoint is None:
        return None
    file = Path(network.checkpoint)
    if file.is_dir():
        file /= WEIGHTS
    state = read_weights(file, network.trust_checkpoint)
    load_weights(build_detector(without_downloads(model)), state, file)
    return {"file": file, "trust": network.trust_checkpoint}, weights_digest(state)


def _own_curves(curves: dict[str, list[float]], network: str) -> dict[str, list[float]]:
    """The curves of one network: its losses, their sum, and `taught`, what it taught."""
    prefix = f"{network}."
    own = {k.removeprefix(prefix): v for k, v in curves.items() if k.startswith(prefix)}
    total = np.sum(list(own.values()), axis=0).round(5).tolist()
    return {"step": curves["step"], "loss": total, "taught": curves[f"taught_by_{network}"]} | own
