"""Labels that change need a new version: fixed outputs of a head give the rows that lie here.

`python -m tests.teacher_pass.test_labels_version` stores the rows that they give now. Run it after
`LABELS_VERSION` was raised.
"""

from pathlib import Path

import numpy as np
import torch

from pipeline.data.ground_truth import GroundTruth
from pipeline.detector.build import build_detector, load_model_config, without_downloads
from pipeline.heads.batch_grid import BatchGrid
from pipeline.store.coding import Coding, SoftSettings
from pipeline.store.fingerprint import LABELS_VERSION
from pipeline.store.schema import ASSIGNED_GT
from pipeline.teacher_pass.label import ForwardPass, label_rows
from pipeline.teacher_pass.teacher import Teacher
from tests.conftest import ROOT

STORED = Path(__file__).with_name("labels_version.npz")
PADDED = (128, 192)
CLASSES = 4
MAPS = ("cls_scores", "bbox_preds", "iou_preds")
BOXES = [
    [[20.0, 30.0, 70.0, 90.0], [100.0, 10.0, 150.0, 60.0], [90.0, 40.0, 170.0, 120.0]],
    [[5.0, 5.0, 185.0, 120.0], [60.0, 60.0, 80.0, 78.0]],
]
LABELS = [[0, 3, 1], [2, 0]]
CROWD = [[False, False, True], [False, False]]
SOFT = SoftSettings(scores=Coding(cut=0.012, levels=63, power=1.5), min_iou=0.1, min_score=0.05)
MOST_ROUNDED = 0.01
"""The part of an array's codes that rounding of another library version may move by a step."""


def teacher() -> Teacher:
    model = load_model_config(ROOT / "configs/paa_r18_quarter.py", CLASSES)
    return Teacher(build_detector(without_downloads(model)))


def draw_outputs(judge: Teacher) -> dict[str, np.ndarray]:
    """Class logits that are low but near objects, boxes about the priors, and IoU logits."""
    rng = np.random.default_rng(0)
    found = {}
    for level, (rows, columns) in enumerate(judge.grid.level_shapes(PADDED)):
        shape = (len(BOXES), 1, rows, columns)
        bright = rng.normal(-4, 2, shape) + 4 * (rng.random(shape) < 0.15)
        scores = bright + rng.normal(0, 1.5, (len(BOXES), CLASSES, rows, columns))
        deltas = rng.normal(0, 2, (len(BOXES), 4, rows, columns))
        maps = (scores, deltas, rng.normal(0, 1, shape))
        found |= {
            f"{name}.{level}": m.astype(np.float32) for name, m in zip(MAPS, maps, strict=True)
        }
    return found


def rows_of(judge: Teacher, content: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], int]:
    levels = range(len(judge.grid.strides))
    outputs = [[torch.from_numpy(content[f"{name}.{level}"]) for level in levels] for name in MAPS]
    truth = GroundTruth.pad(
        *([torch.tensor(view) for view in part] for part in (BOXES, LABELS, CROWD))
    )
    grid = BatchGrid(judge.grid, PADDED, [PADDED] * len(BOXES), judge.device)
    return label_rows(judge, ForwardPass(outputs, truth, grid), SOFT)


def test_labels_that_changed_have_a_new_version() -> None:
    content = dict(np.load(STORED))
    expected = {n.removeprefix("rows."): v for n, v in content.items() if n.startswith("rows.")}
    remedy = (
        "raise LABELS_VERSION if labels changed on purpose, then run this file (see its docstring)"
    )
    assert content["version"] == LABELS_VERSION, remedy
    found, fallbacks = rows_of(teacher(), content)
    assert found.keys() == expected.keys(), remedy
    np.testing.assert_array_equal(found[ASSIGNED_GT], expected[ASSIGNED_GT], remedy)
    assert fallbacks == content["fallbacks"], remedy
    for name, values in found.items():
        assert values.dtype == expected[name].dtype, name
        if name == "tail_mean":
            np.testing.assert_allclose(values, expected[name], rtol=2e-3, err_msg=remedy)
        else:
            steps = np.abs(values.astype(int) - expected[name].astype(int))
            assert steps.max() <= 1, f"{name}: {remedy}"
            assert (steps > 0).mean() <= MOST_ROUNDED, f"{name}: {remedy}"


def test_the_stored_rows_say_something() -> None:
    """Positives of each object that is no crowd, probabilities on both sides of the cut, boxes."""
    content = dict(np.load(STORED))
    for view, crowd in enumerate(CROWD):
        positives = set(content[f"rows.{ASSIGNED_GT}"][view].tolist()) - {-1}
        assert positives == {number for number, is_crowd in enumerate(crowd) if not is_crowd}
    codes = content["rows.cls_scores"]
    assert 0.1 < (codes == 0).mean() < 0.9
    assert len(np.unique(codes)) > 30
    overlaps, boxes = content["rows.box_quality"][:, 0] > 0, content["rows.distances"].any(2)
    assert overlaps.sum() > 50
    assert (overlaps & ~boxes).sum() == 0
    assert (boxes & ~overlaps).sum() > 50  # where a class is likely
    assert (~boxes).sum() > 50


if __name__ == "__main__":
    judge = teacher()
    outputs = draw_outputs(judge)
    rows, fallbacks = rows_of(judge, outputs)
    stored = outputs | {f"rows.{name}": values for name, values in rows.items()}
    np.savez_compressed(STORED, version=LABELS_VERSION, fallbacks=fallbacks, **stored)
