"""Makes the teacher: trains a PAA, or takes the checkpoint that the user has."""

import shutil
from pathlib import Path
from typing import Any

from pipeline.data.dataset import load_data_info
from pipeline.detector.build import build_detector, load_model_config, without_downloads
from pipeline.detector.model_folder import load_weights, read_weights, save_model
from pipeline.project.params import Params
from pipeline.project.paths import Paths
from pipeline.training.batched_paa import batched_paa
from pipeline.training.distributed import is_first
from pipeline.training.run import train
from pipeline.views.plan import view_plan


def make_teacher(params: Params, paths: Paths) -> dict[str, Any]:
    """Write the teacher's model folder.

    Returns:
        What the training cost, or the name of the checkpoint that was taken.

    Raises:
        UserError: the data are missing, or config and checkpoint do not fit them.
    """
    data = load_data_info(paths)
    settings = params.teacher
    model = load_model_config(settings.config, num_classes=len(data.classes))
    record: dict[str, Any]
    if settings.checkpoint is not None:
        file = Path(settings.checkpoint)
        state = read_weights(file, settings.trust_checkpoint)
        load_weights(build_detector(without_downloads(model)), state, file)
        record = {"name": "teacher", "checkpoint": settings.checkpoint}
    else:
        state, cost = train(
            name="teacher",
            model=batched_paa(model),
            training=settings.training,
            plan=view_plan(params.views),
            data=data,
            run_folder=paths.run("teacher"),
        )
        record = {"name": "teacher", "method": "paa", "config": settings.config} | cost
    if is_first():
        save_model(paths.teacher, model, state, record)
        shutil.rmtree(paths.run("teacher"), ignore_errors=True)
    return record
