"""COCO's sizes without COCO: random objects and a random teacher, shaped like real ones.

The teacher's outputs are drawn; all that follows (costs, assignment, coding, writing) is the code
of the teacher pass. What the outputs look like was read off trained teachers, of the digit scenes
and of blood cells (BCCD), as functions of two numbers of a prior and an object: the log2 of object
size over prior size, and the offset of centres in half-sides of the object.

- Objects: 1 and more an image, geometric with COCO's mean of 7.3; the square root of their area
  is log-normal, 41 % under 32 and 75 % under 96 pixels in an image of 640 x 480; few classes are
  frequent, most are rare.
- Boxes: the IoU of a decoded box with the prior's object falls with the offset and with a size
  that does not fit the prior's; the box is the object's, shifted and jittered to that IoU. Of
  priors without an object near, it is smaller than the prior, each side jittered.
- Probabilities: a log-normal background with median 9e-4 (by class, by smooth fields of each
  class and of all classes together, and by noise), and peaks on the priors of an object for its
  class and for two that it is confused with; each object has a difficulty of its own.
  99.8 % are under 0.01.

Shapes: P priors of a view, M objects in it, C classes. Boxes are xyxy in pixels of the view.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmengine.config import Config, ConfigDict
from mmengine.structures import InstanceData
from torch import Tensor
from torch.nn.functional import interpolate
from tqdm import tqdm

from pipeline.data.coco import AnnotatedImage, Objects
from pipeline.data.dataset import CheckedSplit
from pipeline.detector.build import build_detector
from pipeline.heads.batch_grid import BatchGrid, ground_truth
from pipeline.heads.paa_costs import HeadOutputs
from pipeline.store.schema import plan_store, unfinished
from pipeline.store.writer import Chunks, StoreWriter
from pipeline.teacher_pass.fingerprint import labels_fingerprint
from pipeline.teacher_pass.label import ForwardPass, label_rows
from pipeline.teacher_pass.settings import Labels
from pipeline.teacher_pass.teacher import Teacher
from pipeline.views.plan import FixedPlan, Shape, View, padded_shape
from pipeline.views.priors import PaddedViews, Priors

SCALE = (1333, 800)
CLASSES = 80
DIVISOR = 32
OBJECTS_PER_IMAGE = 7.3
OBJECT_SIZE = (0.0757, 1.218)
"""Of objects, relative to the square root of the image's area: median, and sigma of its log."""
BACKGROUND = 9e-4
"""The median probability."""
FIELD_NODES = (7, 11)
"""Rows and columns of a smooth field's nodes."""

CONFIGS = Path(__file__).parents[1] / "configs"
"""Those of the repository."""


def _small_paa() -> ConfigDict:
    """The config of a PAA whose network is so small that it costs next to nothing."""
    config = Config.fromfile(CONFIGS / "_base_/paa.py")
    config.merge_from_dict(
        {
            "model.backbone": dict(depth=18, base_channels=4, init_cfg=None),
            "model.neck": dict(in_channels=[4, 8, 16, 32], out_channels=32),
            "model.bbox_head": dict(in_channels=32, feat_channels=32, stacked_convs=1),
        }
    )
    model: ConfigDict = config.model
    assert model.bbox_head.num_classes == CLASSES
    assert model.data_preprocessor.pad_size_divisor == DIVISOR
    return model


MODEL = _small_paa()


class RandomTeacher(Teacher):
    """A teacher whose outputs are drawn for the objects it is told of; its network never runs.

    Args:
        seed: decides all outputs, in the order of calls.
    """

    def __init__(self, seed: int) -> None:
        super().__init__(build_detector(MODEL))
        self.random = torch.Generator().manual_seed(seed)
        self.objects: Objects

    def forward(self, images: Tensor) -> HeadOutputs:
        """Draw what a trained network would say of one image with `self.objects`.

        Args:
            images: (1, 3, H, W), of which only the size matters.
        """
        height, width = images.shape[-2:]
        padded = (height, width)
        priors = self.grid.priors(padded)
        sides = priors.boxes[:, 2] - priors.boxes[:, 0]
        boxes = torch.from_numpy(self.objects.boxes).float()
        half = (boxes[:, 2:] - boxes[:, :2]) / 2
        middles = (boxes[:, :2] + boxes[:, 2:]) / 2
        size = torch.log2(2 * half.prod(1).sqrt() / sides[:, None])
        offset = ((priors.centres[:, None] - middles) / half).abs().amax(2)

        reach = (0.91 - 0.33 * size).clamp(min=0.4)
        ious = 0.93 * torch.exp(-(((size + 0.6) / 1.4) ** 2) - (offset / reach) ** 2.5)
        iou, nearest = ious.max(1)
        deltas = self._deltas(priors, boxes[nearest], iou)
        scores = self._background(padded)
        self._add_peaks(scores, 1 - 4.4 * offset - ((size + 0.5) / 0.6) ** 2)
        predicted_iou = torch.logit(iou.clamp(0.02, 0.98)) + 0.5 * self._normal(len(iou))
        parts = scores, deltas, predicted_iou[:, None]
        return HeadOutputs(*(self._maps(part, padded) for part in parts))

    def _maps(self, values: Tensor, padded: Shape) -> list[Tensor]:
        """A map (1, C, H, W) for each level, from what is said of the priors (P, C)."""
        priors = self.grid.priors(padded)
        levels, shapes = values.split(priors.sizes), priors.shapes
        return [level.T.reshape(1, -1, *shape) for level, shape in zip(levels, shapes, strict=True)]

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.random)

    def _deltas(self, priors: Priors, boxes: Tensor, iou: Tensor) -> Tensor:
        """Encoded boxes (P, 4) that overlap each prior's object.

        Args:
            priors: P of them.
            boxes: (P, 4) the object of each.
            iou: (P,) by about how much.
        """
        size = boxes[:, 2:] - boxes[:, :2]
        # Shifted along both axes by this share of its sides, a box overlaps itself by that IoU.
        shift = 1 - (2 * iou / (1 + iou)).sqrt()
        towards = (priors.centres - (boxes[:, :2] + boxes[:, 2:]) / 2).sign()
        shifted = boxes + (shift[:, None] * size * towards).repeat(1, 2)
        shifted += 0.03 * size.repeat(1, 2) * self._normal(len(boxes), 4)
        centres = priors.centres.repeat(1, 2)
        own = centres + 0.3 * (priors.boxes - centres)
        own += 0.35 * priors.strides[:, None] * self._normal(len(boxes), 4)
        chosen = torch.where(iou[:, None] > 0.08, shifted, own)
        # Jitter must not turn a small box inside out.
        chosen[:, 2:] = torch.maximum(chosen[:, 2:], chosen[:, :2] + 1)
        encoded: Tensor = self.head.bbox_coder.encode(priors.boxes, chosen)
        return encoded

    def _background(self, padded: Shape) -> Tensor:
        """Logits (P, C) of what no object explains: sigma 0.78 in all."""
        fields = self._normal(1, CLASSES + 1, *FIELD_NODES)
        levels = [
            # Interpolation between nodes takes away variance: 1.5 gives it back.
            1.5 * interpolate(fields, shape, mode="bilinear", align_corners=True)[0].flatten(1).T
            for shape in self.grid.level_shapes(padded)
        ]
        smooth = torch.cat(levels)
        logits = 0.45 * smooth[:, :-1] + 0.4 * smooth[:, -1:] + 0.4 * self._normal(CLASSES)
        logits += 0.3 * self._normal(*logits.shape)
        return logits.add_(float(np.log(BACKGROUND)))

    def _add_peaks(self, scores: Tensor, peaks: Tensor) -> None:
        """Raise `scores` (P, C) by the objects' logits `peaks` (P, M)."""
        for index, label in enumerate(self.objects.labels.tolist()):
            difficulty = 1.2 * self._normal(1) - 0.5
            confused = torch.randint(CLASSES, (2,), generator=self.random).tolist()
            for rank, name in enumerate((label, *confused)):
                less = 2 + 0.7 * self._normal(1).abs() if rank else 0
                logit = peaks[:, index] + difficulty - less + 0.4 * self._normal(len(peaks))
                scores[:, name] = torch.logaddexp(scores[:, name], logit)


@dataclass(frozen=True, eq=False)
class DrawnView:
    """A view of which only the objects and what a teacher says are known.

    Attributes:
        outputs: what the head returns for a batch of this view alone.
        sample: the objects, as mmdet's preprocessor leaves a view's sample.
        grid: of a batch of this view alone.
    """

    outputs: HeadOutputs
    sample: DetDataSample
    grid: BatchGrid

    def to(self, device: torch.device | str) -> "DrawnView":
        """The same on a device."""
        outputs = HeadOutputs(*([level.to(device) for level in maps] for maps in self.outputs))
        grid = replace(self.grid, device=torch.device(device))
        return DrawnView(outputs, self.sample.to(device), grid)

    def forward_pass(self) -> ForwardPass:
        """The same as what a teacher pass knows of a batch."""
        truth = ground_truth([self.sample], self.outputs.device)
        return ForwardPass(self.outputs, truth, self.grid)


def draw_view(teacher: RandomTeacher, objects: Objects, size: tuple[int, int]) -> DrawnView:
    """What the teacher says of a view of (width, height) pixels with these objects, no crowds."""
    teacher.objects = objects
    shape = size[::-1]
    padded = padded_shape(shape, DIVISOR)
    outputs = teacher.forward(torch.empty(1, 3, *padded))
    sample = DetDataSample(
        metainfo={"img_shape": shape, "pad_shape": padded, "batch_input_shape": padded}
    )
    sample.gt_instances = InstanceData(
        bboxes=torch.from_numpy(objects.boxes).float(), labels=torch.from_numpy(objects.labels)
    )
    sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0).long())
    return DrawnView(outputs, sample, BatchGrid.of(teacher.grid, [sample], outputs.device))


def random_images(count: int, seed: int) -> list[AnnotatedImage]:
    """Images of the size `SCALE` with objects like COCO's; see the module."""
    rng = np.random.default_rng(seed)
    # Evenly spaced quantiles, so that a few images have about the mean of many.
    quantiles = rng.permutation((np.arange(count) + 0.5) / count)
    objects = np.ceil(np.log1p(-quantiles) / np.log1p(-1 / OBJECTS_PER_IMAGE)).astype(int)
    return [
        AnnotatedImage(number + 1, f"{number + 1}.jpg", *SCALE, random_objects(rng, int(amount)))
        for number, amount in enumerate(objects)
    ]


def random_objects(rng: np.random.Generator, count: int, size: tuple[int, int] = SCALE) -> Objects:
    """Objects like COCO's.

    Args:
        rng: draws them.
        count: how many.
        size: (width, height) of their image.
    """
    image = np.array(size, np.float64)
    median, sigma = OBJECT_SIZE
    side = median * np.exp(sigma * rng.standard_normal(count)) * np.sqrt(image.prod())
    aspect = np.exp(0.25 * rng.standard_normal(count))
    sides = np.stack([side * aspect, side / aspect], 1).clip(8, image * 0.98)
    corner = rng.random((count, 2)) * (image - sides)
    frequency = 1 / np.arange(1, CLASSES + 1)
    return Objects(
        boxes=np.concatenate([corner, corner + sides], 1),
        labels=rng.choice(CLASSES, count, p=frequency / frequency.sum()).astype(np.int64),
        crowd=np.zeros(count, np.bool_),
    )


def write_random_store(
    path: Path, views: int, labels: Labels, shard_rows: int, seed: int = 0, drawn: int | None = None
) -> None:
    """Write a complete store of one view of each of `views` random images.

    Args:
        path: where there is nothing yet.
        views: how many.
        labels: the settings of the coding.
        shard_rows: rows of a shard.
        seed: decides objects and outputs.
        drawn: how many views are drawn, which takes 0.2 s each; the others repeat one of them. None
            for all.
    """
    teacher = RandomTeacher(seed)
    soft = labels.soft_settings()
    plan = FixedPlan((View(SCALE, flip=False),))
    drawn_images = random_images(drawn or views, seed)
    # In random order: no two shards are alike.
    order = np.random.default_rng(seed).permutation(np.arange(views) % len(drawn_images))
    images = [
        replace(drawn_images[source], image_id=number + 1) for number, source in enumerate(order)
    ]
    layout = plan_store(
        images,
        PaddedViews(plan, teacher.grid, DIVISOR),
        shard_rows,
        CLASSES if soft else 0,
    )
    classes = tuple(f"class {number}" for number in range(CLASSES))
    split = CheckedSplit(classes, Path("random"), Path("random"), "", "")
    fingerprint = labels_fingerprint(split, teacher, MODEL, plan, soft)
    writer = StoreWriter.create(unfinished(path), layout, fingerprint)
    encoded: dict[int, Chunks] = {}
    with tqdm(total=views, desc="random store", unit="view") as bar:
        for shard in layout.shards():
            chunks: Chunks = {}
            for source in order[shard.views].tolist():
                if source not in encoded:
                    view = draw_view(teacher, drawn_images[source].objects, SCALE)
                    rows, _ = label_rows(teacher, view.forward_pass(), soft)
                    encoded[source] = writer.encode(shard, rows)
                for name, more in encoded[source].items():
                    chunks.setdefault(name, []).extend(more)
                bar.update()
            writer.write(shard, chunks)
    writer.finish(path)
