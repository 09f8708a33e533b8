"""The assignment of 8 views after the forward, and the memory of a student's training."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from mmengine.device import get_device

from benchmarks.assignment import OBJECTS, VIEWS, assign, assign_mmdet, join_outputs, mmdet_head
from benchmarks.measure import Figures, Ratio, alternate, medians
from benchmarks.memory import measure_memory
from benchmarks.random_teacher import (
    CONFIGS,
    SCALE,
    RandomTeacher,
    draw_view,
    random_objects,
)
from benchmarks.synthetic import write_project
from pipeline.detector.build import load_model_config
from pipeline.teacher_pass.run import fill_store


def measure(quick: bool) -> Iterator[Figures]:
    """Assign drawn views in turn with mmdet; then train some steps in processes of their own."""
    yield _assignment((128, 96) if quick else SCALE, repeats=1 if quick else 20)
    config = "paa_r18_quarter" if quick else "paa_r18"
    teacher = "paa_r18_quarter" if quick else "paa_r101"
    size, batch = ((128, 96), 2) if quick else ((512, 512), 8)
    with tempfile.TemporaryDirectory() as folder:
        params, paths = write_project(
            Path(folder),
            load_model_config(CONFIGS / f"{teacher}.py"),
            images=4 * batch,
            size=size,
            training={"batch_size": batch},
            teacher_pass={"batch_size": batch, "workers": 0},
            students={config: {"config": str(CONFIGS / f"{config}.py"), "method": "lad"}},
        )
        fill_store(params.labels, params.teacher_pass, params.views, paths, replace=False)
        yield measure_memory(config, params, paths, steps=2)


def _assignment(size: tuple[int, int], repeats: int) -> Figures:
    rng, device = np.random.default_rng(0), get_device()
    teacher, head = RandomTeacher(seed=0), mmdet_head().to(device)
    views = [
        draw_view(teacher, random_objects(rng, OBJECTS, size), size).to(device)
        for _ in range(VIEWS)
    ]
    teacher.detector.to(device)
    outputs = join_outputs(views)
    seconds = alternate(
        {
            "ours": lambda _: assign(teacher, views, outputs),
            "mmdet": lambda _: assign_mmdet(head, views, outputs),
        },
        repeats,
        warmup=2,
    )
    rates = {way: VIEWS / spent for way, spent in medians(seconds).items()}
    ratio = Ratio(
        f"assignment, {VIEWS} views at once, {OBJECTS} objects each",
        rates["ours"],
        "mmdet's get_label_assignment",
        rates["mmdet"],
        "views/s",
        at_least=10,
    )
    note = f"outputs of the random teacher at {size[0]} x {size[1]}, on {device}"
    return Figures([ratio], note, {"seconds": seconds})
