"""The data set of views has the images and objects that mmdet's own has of the same file."""

from mmdet.datasets import CocoDataset

from pipeline.data.dataset import load_split
from pipeline.loading.dataset import view_dataset
from pipeline.views.plan import view_plan


def test_each_view_is_of_what_mmdet_reads(labelled) -> None:
    split = load_split(labelled.paths, "train")
    plan = view_plan(labelled.params.views)
    ours = view_dataset(split, plan)
    theirs = CocoDataset(
        ann_file=str(split.annotations),
        data_prefix={"img": str(split.images_folder)},
        metainfo={"classes": split.classes},
        pipeline=[],
    )
    assert len(ours) == len(theirs) * len(plan) == 24 * 4
    assert ours.image_ids().tolist() == [theirs.get_data_info(n)["img_id"] for n in range(24)]
    crowds = 0
    for place in range(len(ours)):
        image, number = divmod(place, len(plan))
        found, expected = ours.get_data_info(place), theirs.get_data_info(image)
        for name in ("img_id", "img_path", "height", "width"):
            assert found[name] == expected[name]
        names = ("bbox", "bbox_label", "ignore_flag")
        assert found["instances"] == [
            {name: one[name] for name in names} for one in expected["instances"]
        ]
        assert found["view"] == plan.views[number]
        assert found["view_index"] == place
        crowds += sum(one["ignore_flag"] for one in found["instances"])
    assert crowds
    assert not ours.get_data_info(4 * len(plan))["instances"]  # those of image 5 were removed
