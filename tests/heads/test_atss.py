"""What ATSS can't learn of another head's assignment."""

import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData

from pipeline.heads.registry import family_of_model
from pipeline.students.assignment import ASSIGNED, CachedPositives
from pipeline.students.taught import CachedDetector
from tests.heads.zoo import zoo_model


def loss_of(priors: list[int], learn: list[int]) -> dict[str, torch.Tensor]:
    """The losses of an ATSS that learns an object of 40 pixels at (60, 60)."""
    torch.manual_seed(0)
    model = zoo_model("ATSS")
    network = CachedDetector(
        detector=family_of_model(model, "").replaying(model),
        assignment="teacher",
        distillation=None,
    ).train()
    sample = DetDataSample(metainfo=dict(img_shape=(256, 256)))
    sample.gt_instances = InstanceData(
        bboxes=torch.tensor([[40.0, 40, 80, 80]]), labels=torch.tensor([3])
    )
    sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0).long())
    sample.set_metainfo({ASSIGNED: CachedPositives(np.array(priors), np.array(learn))})
    image = torch.arange(3 * 256 * 256).view(3, 256, 256) % 256
    ready = network.data_preprocessor(
        {"inputs": [image.byte()], "data_samples": [sample]}, training=True
    )
    found = network.loss(ready["inputs"], ready["data_samples"])
    return {
        name: torch.stack(list(value)).sum() if isinstance(value, list) else value
        for name, value in found.items()
    }


def test_a_positive_outside_its_box_is_left_out_and_counted() -> None:
    """Rows of 32 cells of 8 pixels: prior 230 lies at (48, 56), prior 2 at (16, 0)."""
    with_both = loss_of([2, 230], [0, 0])
    alone = loss_of([2, 230], [-2, 0])
    assert with_both["left_out"] == 1
    assert alone["left_out"] == 0
    for name in ("loss_cls", "loss_bbox", "loss_centerness"):
        assert with_both[name].isfinite()
        assert torch.equal(with_both[name], alone[name])
    inside = loss_of([230], [0])
    assert inside["loss_cls"] != alone["loss_cls"]  # prior 2 is background, and learns that
