"""Records of trainings, evaluations and a teacher pass, as these leave them."""

import json
from pathlib import Path

from pipeline.students.settings import Student
from pipeline.students.train import student_record
from pipeline.training.settings import Training

METRICS = {"AP": 0.41234, "AP50": 0.6, "AP75": 0.45, "APs": -1, "APm": None, "APl": 0.5}
LABELS = {
    "images": 100,
    "views": 400,
    "views_per_image": 4,
    "seconds": 200.0,
    "views_per_second": 2.0,
    "bytes_on_disk": 98_000,
    "bytes_per_view": 245.0,
    "objects": 300,
}


def save(file: Path, content: dict) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))


def training(name: str, method: str, own: dict | None = None, **changes: object) -> dict:
    """The record of a student, with training settings of its own."""
    losses = [3.0, 2.0, 1.0]
    student = Student(config="configs/small.py", method="lad" if method == "colearn" else method)
    return (
        student_record(name, student, Training(**own or {}))
        | {
            "method": method,
            "assigner": "batched",
            "parameters": 1_234_567,
            "epochs": 8,
            "steps": 104,
            "batch_size": 8,
            "images": 100,
            "seconds_per_step": 0.5,
            "total_seconds": 3700.0,
            "curves": {"step": [1, 2, 3], "loss": losses, "loss_cls": losses},
        }
        | changes
    )
