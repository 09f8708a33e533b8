"""Makes the teacher: trains a detector, or takes the checkpoint that the user has."""

import copy
from pathlib import Path
from typing import Any

from pipeline.data.dataset import load_split
from pipeline.detector.build import build_detector, load_model_config, without_downloads
from pipeline.detector.model_folder import load_weights, read_weights, save_model
from pipeline.heads.registry import family_of_model
from pipeline.project.paths import Paths
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
        state, cost = train(
            TrainingRun(
                name="teacher",
                model=family.own(copy.deepcopy(model)),
                training=settings.training,
                plan=view_plan(views),
                split=split,
                folder=folder,
                code=(__name__,),
            )
        )
        record |= cost
    if is_first():
        save_model(paths.teacher, model, state, record)
        discard_run(folder)
    return record
