"""COCO metrics of a detector on the validation images, by mmdet's `CocoMetric` (pycocotools)."""

import io
import json
import tempfile
from contextlib import redirect_stdout
from pathlib import Path

import torch
from mmengine.runner import Runner

import pipeline.loading.images  # noqa: F401  registers what loads images
from pipeline.data.coco import load_images
from pipeline.data.dataset import load_split
from pipeline.detector.build import without_downloads, without_waits
from pipeline.detector.model_folder import CONFIG, WEIGHTS, load_model
from pipeline.detector.small_views import large_enough
from pipeline.evaluation.settings import Evaluation
from pipeline.project.errors import UserError, did_you_mean
from pipeline.project.files import PARTIAL, REMOVED, write_whole
from pipeline.project.full_memory import full_memory
from pipeline.project.machine import loader_processes
from pipeline.project.paths import Paths, made_by
from pipeline.views.plan import View, of_image

METRICS = {
    "AP": "mAP",
    "AP50": "mAP_50",
    "AP75": "mAP_75",
    "APs": "mAP_s",
    "APm": "mAP_m",
    "APl": "mAP_l",
}


def evaluate(name: str, settings: Evaluation, paths: Paths) -> dict[str, float]:
    """Measure a model on the validation images and write its metrics.

    Args:
        name: of the model; see `Paths.model`.
        settings: how it is measured.
        paths: where data and model are, and where the metrics go.

    Returns:
        COCO's average precisions in [0, 1], of sizes that objects have.

    Raises:
        UserError: data or model are missing, the model has other classes, or there is no object to
            measure.
    """
    _require_known(name, paths)
    split = load_split(paths, "val")
    folder = paths.model(name)
    detector, model = load_model(folder, made_by(name))
    if detector.bbox_head.num_classes != len(split.classes):
        raise UserError(
            f"the model in {folder} knows {detector.bbox_head.num_classes} classes, the data set "
            f"has {len(split.classes)}: {', '.join(split.classes)}"
        )
    _require_objects(split.annotations, settings)
    with tempfile.TemporaryDirectory() as scratch:
        runner = Runner(
            default_scope="mmdet",
            experiment_name=f"evaluate_{name}",
            model=without_waits(without_downloads(model)),
            work_dir=scratch,
            load_from=str(folder / WEIGHTS),
            test_dataloader=dict(
                batch_size=settings.batch_size,
                num_workers=loader_processes(settings.workers),
                pin_memory=torch.cuda.is_available(),
                sampler=dict(type="DefaultSampler", shuffle=False),
                dataset=dict(
                    type="CocoDataset",
                    ann_file=str(split.annotations),
                    data_prefix=dict(img=str(split.images_folder)),
                    metainfo=dict(classes=split.classes),
                    test_mode=True,
                    pipeline=[
                        dict(type="LoadCheckedImage"),
                        dict(type="Resize", scale=settings.scale, keep_ratio=True),
                        dict(
                            type="PackDetInputs",
                            meta_keys=("img_id", "ori_shape", "img_shape", "scale_factor"),
                        ),
                    ],
                ),
            ),
            test_cfg=dict(),
            test_evaluator=dict(type="CocoMetric", ann_file=str(split.annotations), metric="bbox"),
            default_hooks=dict(logger=None, checkpoint=None),
            visualizer=dict(type="Visualizer", vis_backends=[]),
            log_level="ERROR",
        )
        large = large_enough(runner.model, "evaluation.batch_size")
        # pycocotools prints a table with -1 for what there is nothing of.
        quiet = redirect_stdout(io.StringIO())
        with full_memory("lower evaluation.batch_size"), large, quiet:
            found = runner.test()
    # pycocotools says -1 where there is no object to measure. DVC lists every number of this file.
    metrics = {
        ours: float(value)
        for ours, theirs in METRICS.items()
        if (value := found.get(f"coco/bbox_{theirs}", -1)) >= 0
    }
    # Where nothing at all was detected, CocoMetric says nothing.
    metrics = metrics or dict.fromkeys(("AP", "AP50", "AP75"), 0.0)
    write_whole(paths.metrics(name), json.dumps(metrics, indent=1))
    return metrics


def _require_objects(annotations: Path, settings: Evaluation) -> None:
    """Refuse images without an object, and one that would have no pixels, before all is run."""
    images = load_images(annotations)
    for image in images:
        with of_image(image.file_name):
            View(settings.scale, flip=False).resized_shape(image.height, image.width)
    if all(image.objects.crowd.all() for image in images):
        raise UserError(
            f"{annotations} has no object to measure; run `lad data` with a validation set that "
            "has some"
        )


def _require_known(name: str, paths: Paths) -> None:
    """Refuse a name that is no model's."""
    trained = sorted(file.parent.name for file in paths.students.glob(f"*/{CONFIG}"))
    trained = [one for one in trained if not one.endswith((PARTIAL, REMOVED))]
    if name != "teacher" and name not in trained:
        raise UserError(
            f"there is no model {name!r}{did_you_mean(name, ['teacher', *trained])}; there are: "
            f"{', '.join(['teacher', *trained])}; `{made_by(name)}` trains one of params.yaml"
        )
