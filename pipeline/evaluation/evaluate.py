"""COCO metrics of a detector on the validation images, by mmdet's `CocoMetric` (pycocotools)."""

import json
import tempfile
from typing import Any

from mmengine.runner import Runner

from pipeline.data.dataset import load_data_info
from pipeline.detector.build import without_downloads
from pipeline.detector.model_folder import WEIGHTS, load_model
from pipeline.project.errors import UserError
from pipeline.project.params import Params
from pipeline.project.paths import Paths, made_by

METRICS = {
    "AP": "mAP",
    "AP50": "mAP_50",
    "AP75": "mAP_75",
    "APs": "mAP_s",
    "APm": "mAP_m",
    "APl": "mAP_l",
}


def evaluate(name: str, params: Params, paths: Paths) -> dict[str, Any]:
    """Measure the model `name` (see `Paths.model`) and write its metrics.

    Returns:
        COCO's average precisions in [0, 1]; -1 where no object has that size.

    Raises:
        UserError: data or model are missing, or the model has other classes.
    """
    data = load_data_info(paths)
    folder = paths.model(name)
    detector, model = load_model(folder, made_by(name))
    if detector.bbox_head.num_classes != len(data.classes):
        raise UserError(
            f"the model in {folder} knows {detector.bbox_head.num_classes} classes, the data set "
            f"has {len(data.classes)}: {', '.join(data.classes)}"
        )
    with tempfile.TemporaryDirectory() as scratch:
        runner = Runner(
            default_scope="mmdet",
            experiment_name=f"evaluate_{name}",
            model=without_downloads(model),
            work_dir=scratch,
            load_from=str(folder / WEIGHTS),
            test_dataloader=dict(
                batch_size=params.evaluation.batch_size,
                num_workers=params.evaluation.workers,
                sampler=dict(type="DefaultSampler", shuffle=False),
                dataset=dict(
                    type="CocoDataset",
                    ann_file=str(data.val.annotations),
                    data_prefix=dict(img=str(data.val.images_folder)),
                    metainfo=dict(classes=data.classes),
                    test_mode=True,
                    pipeline=[
                        dict(type="LoadImageFromFile"),
                        dict(type="Resize", scale=params.evaluation.scale, keep_ratio=True),
                        dict(
                            type="PackDetInputs",
                            meta_keys=("img_id", "ori_shape", "img_shape", "scale_factor"),
                        ),
                    ],
                ),
            ),
            test_cfg=dict(),
            test_evaluator=dict(
                type="CocoMetric", ann_file=str(data.val.annotations), metric="bbox"
            ),
            default_hooks=dict(logger=None, checkpoint=None),
            visualizer=dict(type="Visualizer", vis_backends=[]),
            log_level="ERROR",
        )
        found = runner.test()
    # Where nothing at all was detected, CocoMetric says nothing.
    metrics = {ours: float(found.get(f"coco/bbox_{theirs}", 0)) for ours, theirs in METRICS.items()}
    result: dict[str, Any] = metrics | {"images": len(runner.test_dataloader.dataset)}
    file = paths.metrics(name)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(result, indent=1))
    return result
