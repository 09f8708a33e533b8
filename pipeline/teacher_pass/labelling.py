"""What the teacher says of the views of a data set, and what that depends on."""

import ast
import hashlib
import io
import tokenize
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmdet.datasets.transforms import Resize
from mmengine.config import ConfigDict
from mmengine.device import get_device

from pipeline.data.coco import Objects
from pipeline.data.dataset import DataInfo
from pipeline.detector.build import preprocessing
from pipeline.detector.model_folder import load_model, weights_digest
from pipeline.loading.replay import Attachments, ViewDataset, view_pipeline
from pipeline.project.errors import UserError
from pipeline.project.paths import Paths
from pipeline.store.coding import SoftSettings, encode_share, encode_sides
from pipeline.store.fingerprint import Fingerprint, label_parts
from pipeline.store.schema import ASSIGNED_GT, Shard, StoreLayout
from pipeline.teacher_pass.teacher import FLOAT32, Assignment, Beliefs, Numerics, Outputs, Teacher
from pipeline.views.plan import Shape, ViewPlan

VERSIONS = (
    "torch",
    "torchvision",
    "onedl-mmengine",
    "onedl-mmdetection",
    "onedl-mmcv",
    "opencv-python-headless",
    "numpy",
)


DECIDING_CODE = (
    "assignment/arrays.py",
    "assignment/iou.py",
    "assignment/mixture.py",
    "assignment/paa.py",
    "detector/pooling.py",
    "detector/preprocessor.py",
    "heads/objectness.py",
    "loading/replay.py",
    "store/coding.py",
    "teacher_pass/labelling.py",
    "teacher_pass/teacher.py",
    "views/plan.py",
    "views/priors.py",
)
"""The modules of this package that decide labels."""


def load_teacher(
    paths: Paths,
    data: DataInfo,
    numerics: Numerics = FLOAT32,
    device: str | None = None,
) -> tuple[Teacher, ConfigDict]:
    """The teacher on a device, and its config.

    Args:
        paths: where it is.
        data: whose classes it knows.
        numerics: how its network computes.
        device: None for the one of this process.

    Raises:
        UserError: it is missing, or knows other classes than the data set.
    """
    detector, model = load_model(paths.teacher, "lad teacher")
    if detector.bbox_head.num_classes != len(data.classes):
        raise UserError(
            f"the teacher in {paths.teacher} knows {detector.bbox_head.num_classes} classes, "
            f"the data set has {len(data.classes)}: {', '.join(data.classes)}"
        )
    return Teacher(detector.to(device or get_device()), numerics), model


def labels_fingerprint(
    data: DataInfo,
    teacher: Teacher,
    model: ConfigDict,
    plan: ViewPlan,
    soft: SoftSettings | None,
) -> Fingerprint:
    """Everything that the labels depend on.

    Of library versions the first two numbers count, and of the teacher's config nothing on where
    its weights come from (they are part of it themselves) or how boxes are selected afterwards.
    """
    resize = Resize(scale=(1, 1), keep_ratio=True)
    given = preprocessing(model)
    numerics: dict[str, Any] = {"device": teacher.device.type} | asdict(teacher.numerics)
    if teacher.device.type == "cuda":
        numerics["tf32"] = [
            torch.backends.cuda.matmul.allow_tf32,
            torch.backends.cudnn.allow_tf32,
        ]
    return label_parts(data, plan, teacher.grid, given["pad_size_divisor"]) | {
        "teacher": {
            "weights": weights_digest(teacher.detector.state_dict()),
            "model": {
                part: _what_decides(model[part].to_dict())
                for part in ("backbone", "neck", "bbox_head")
            },
        },
        "preprocessing": model.data_preprocessor.to_dict()
        | given
        | {"resize": {"backend": resize.backend, "interpolation": resize.interpolation}},
        "coding": asdict(soft) if soft else None,
        "assignment": model.train_cfg.to_dict(),
        "numerics": numerics,
        "code": _code_digest(),
        "versions": {name: ".".join(version(name).split(".")[:2]) for name in VERSIONS},
    }


def _code_digest() -> str:
    """sha256 of the code that decides labels, whatever its comments and docstrings say."""
    digest = hashlib.sha256()
    for name in DECIDING_CODE:
        digest.update(_bare_code((Path(__file__).parents[1] / name).read_text()).encode())
    return digest.hexdigest()


def _bare_code(text: str) -> str:
    """A module without comments, docstrings and empty lines; the same for any Python."""
    lines = text.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (
            ast.get_docstring(node)
        ):
            docstring = node.body[0]
            for row in range(docstring.lineno, (docstring.end_lineno or docstring.lineno) + 1):
                lines[row - 1] = ""
    return "\n".join(line.rstrip() for line in lines if line.strip())


def _what_decides(config: Any) -> Any:
    if isinstance(config, dict):
        others = {"init_cfg", "test_cfg", "train_cfg"}
        return {k: _what_decides(v) for k, v in config.items() if k not in others}
    return config


def numerics_of(fingerprint: Fingerprint) -> Numerics:
    """How the network computed that made the labels with this fingerprint."""
    return Numerics(*(fingerprint["numerics"][field.name] for field in fields(Numerics)))


ALL_OBJECTS = Attachments([dict(type="KeepObjects")], ["objects"])


def view_dataset(
    data: DataInfo, plan: ViewPlan, attached: Attachments = ALL_OBJECTS
) -> ViewDataset:
    """All views of the training images, with what is attached to them."""
    return ViewDataset(
        plan=plan,
        annotations=data.train.annotations,
        images=data.train.images_folder,
        classes=data.classes,
        pipeline=view_pipeline(attached),
    )


def batches_of(shard: Shard, layout: StoreLayout, made_with: dict[str, Any]) -> list[list[int]]:
    """The views of a shard, in batches for the teacher.

    Args:
        shard: which views.
        layout: of the store.
        made_with: of the store: its `batch_size`, and those of buckets that have others.
    """
    bucket = layout.buckets[shard.bucket].name
    size = made_with.get("bucket_batch_sizes", {}).get(bucket, made_with["batch_size"])
    views: list[int] = shard.views.tolist()
    return [views[start : start + size] for start in range(0, len(views), size)]


@dataclass(frozen=True)
class Seen:
    """What the network says of B views with the same padded size.

    Attributes:
        outputs: of its head.
        objects: of each view, all objects in file order; boxes in pixels of the view.
        padded: (H, W).
    """

    outputs: Outputs
    objects: list[Objects]
    padded: Shape


def look(teacher: Teacher, batch: dict[str, Any]) -> Seen:
    """Show the network views with the same padded size.

    Args:
        teacher: whose network it is.
        batch: B collated items of `view_dataset`.
    """
    ready = teacher.detector.data_preprocessor(batch)
    objects = [
        Objects(
            boxes=sample.metainfo["objects"]["boxes"].astype(np.float64),
            labels=sample.metainfo["objects"]["labels"],
            crowd=sample.metainfo["objects"]["crowd"],
        )
        for sample in ready["data_samples"]
    ]
    height, width = ready["inputs"].shape[-2:]
    return Seen(teacher.forward(ready["inputs"]), objects, (height, width))


def decide(
    teacher: Teacher, seen: Seen, soft: SoftSettings | None
) -> tuple[Assignment, Beliefs | None]:
    """What the teacher concludes from what its network says.

    Args:
        teacher: decides.
        seen: by its network.
        soft: how soft scores are stored, if at all.
    """
    about = seen.outputs, seen.objects, seen.padded
    return teacher.assign(*about), teacher.believe(*about, soft.min_iou) if soft else None


def ask(
    teacher: Teacher, batch: dict[str, Any], soft: SoftSettings | None
) -> tuple[Assignment, Beliefs | None]:
    """What the teacher says of views with the same padded size: `look` and `decide`."""
    return decide(teacher, look(teacher, batch), soft)


def label_rows(
    teacher: Teacher, seen: Seen, soft: SoftSettings | None
) -> tuple[dict[str, np.ndarray], int]:
    """The rows of views with the same padded size.

    Args:
        teacher: decides.
        seen: by its network.
        soft: how soft scores are stored, if at all.

    Returns:
        What to write by array name, each (B, ...), and the number of objects that fell back.
    """
    assignment, beliefs = decide(teacher, seen, soft)
    rows = {ASSIGNED_GT: assignment.objects.to(torch.int16)}
    if soft and beliefs:
        coded = soft.scores.encode(beliefs.probabilities)
        rows |= dict(zip(("cls_scores", "tail_mean", "tail_scale"), coded, strict=True))
        rows["boxes"] = encode_sides(beliefs.boxes)
        rows |= {name: encode_share(getattr(beliefs, name)) for name in ("overlap", "iou")}
    return {name: values.cpu().numpy() for name, values in rows.items()}, assignment.fallbacks
