"""Makes the teacher: trains a detector, or takes the checkpoint that the user has."""

import copy
from pathlib import Path
from typing import Any

from mmdet.models.detectors import SingleStageDetector
from torch import Tensor

from pipeline.data.dataset import load_split
from pipeline.detector.build import build_detector, load_model_config, without_downloads
from pipeline.detector.checkpoint import (
    load_weights,
    matching_weights,
    read_weights,
    weights_digest,
)
from pipeline.detector.model_folder import save_model
from pipeline.heads.registry import family_of_model
from pipeline.project.paths import Paths
from pipeline.project.text import note
from pipeline.teacher.settings import TeacherSettings
from pipeline.training.distributed import is_first
from pipeline.training.run import TrainingRun, train
from pipeline.training.run_folder import discard_run
from pipeline.views.plan import view_plan
from pipeline.views.settings import Views


def make_teacher(settings: TeacherSettings, views: Views, paths: Paths) -> dict[str, Any]:
    """Write the teacher's model folder.

    Args:
        settings: which network, and how it is trained.
        views: what it is trained on.
        paths: where the data are, and where the teacher goes.

    Returns:
        What the training cost, or the name of the checkpoint that was taken.

    Raises:
        UserError: the data are missing, or config and checkpoint do not fit them.
    """
    split = load_split(paths, "train")
    model = load_model_config(settings.config, num_classes=len(split.classes))
    family = family_of_model(model, settings.config)
    network = build_detector(without_downloads(model))
    family(network.bbox_head).check("the teacher")  # before it trains for hours
    folder = paths.run("teacher")
    record: dict[str, Any] = {
        "name": "teacher",
        "method": "own",
        "assigner": family.rule,
        "config": settings.config,
    }
    if settings.checkpoint is not None:
        file = Path(settings.checkpoint)
        state = read_weights(file, settings.trust_checkpoint)
        load_weights(network, state, file)
        record["checkpoint"] = settings.checkpoint
    else:
        first = _first_weights(settings, network)
        state, cost = train(
            TrainingRun(
                name="teacher",
                model=family.own(copy.deepcopy(model)),
                training=settings.training,
                plan=view_plan(views),
                split=split,
                folder=folder,
                code=(__name__,),
                first_weights=first,
                inputs=first and weights_digest(first),
            )
        )
        record |= cost | {"load_from": settings.load_from}
    if is_first():
        save_model(paths.teacher, model, state, record)
        discard_run(folder)
    return record


def _first_weights(
    settings: TeacherSettings, network: SingleStageDetector
) -> dict[str, Tensor] | None:
    """The weights that its training begins with, of layers that fit; None without `load_from`."""
    if settings.load_from is None:
        return None
    file = Path(settings.load_from)
    fitting = matching_weights(network, read_weights(file, settings.trust_checkpoint), file)
    new = [name for name in network.state_dict() if name not in fitting]
    note(f"the teacher begins with {file}; {len(new)} weights are new: {', '.join(new) or 'none'}")
    return fitting
