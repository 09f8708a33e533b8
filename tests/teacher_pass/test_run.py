"""The teacher pass and its store: what is written, continued, refused and noticed."""

import errno
import json
import os
import pickle
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import fsspec
import numpy as np
import pytest
import tensorstore
import torch
import zarr
from mmengine.logging import HistoryBuffer

import pipeline.teacher_pass.open_store
import pipeline.teacher_pass.run
import pipeline.teacher_pass.shard_labeller
from pipeline.data.coco import load_images, objects_digest
from pipeline.data.dataset import load_split
from pipeline.project.errors import UserError
from pipeline.store.reader import LabelStore
from pipeline.store.schema import MISSING, SHARD_FLAGS, unfinished
from pipeline.teacher_pass.label import load_teacher
from tests.unfinished import unfinish


@pytest.fixture
def project(labelled, tmp_path):
    return labelled.copy(tmp_path)


def contents(store: Path) -> dict[str, np.ndarray]:
    """Every array of a store, read by zarr-python."""
    group = zarr.open_group(store, mode="r")
    names = [f"views/{name}" for name, _ in group["views"].arrays()]
    for bucket, place in group["buckets"].groups():
        names += [f"buckets/{bucket}/{name}" for name, _ in place.arrays()]
    return {name: group[name][:] for name in names}


def assert_same_stores(one: Path, other: Path) -> None:
    ours, theirs = contents(one), contents(other)
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        np.testing.assert_array_equal(array, theirs[name], err_msg=name)


def test_fast_reads_equal_zarr_and_tensorstore(labelled) -> None:
    store = LabelStore(labelled.paths.labels)
    arrays = contents(labelled.paths.labels)
    for bucket in store.layout.buckets:
        name = f"buckets/{bucket.name}/assigned_gt"
        independent = tensorstore.open(
            {
                "driver": "zarr3",
                "kvstore": {"driver": "file", "path": str(labelled.paths.labels / name)},
            },
            read=True,
        ).result()
        np.testing.assert_array_equal(independent.read().result(), arrays[name])
    table = store.layout.table
    for view in range(len(table["row"])):
        bucket = store.layout.buckets[table["bucket"][view]]
        expected = arrays[f"buckets/{bucket.name}/assigned_gt"][table["row"][view]]
        np.testing.assert_array_equal(store.assigned(view), expected)


def test_the_view_table_names_every_view_of_every_image(labelled) -> None:
    images = load_images(load_split(labelled.paths, "train").annotations)
    table = LabelStore(labelled.paths.labels).layout.table
    assert table["image_id"].tolist() == [image.image_id for image in images for _ in range(4)]
    assert table["view"].tolist() == [0, 1, 2, 3] * len(images)
    assert table["gt_digest"][::4].tolist() == [objects_digest(i.objects) for i in images]


def test_an_interrupted_pass_continues_without_repeating_work(
    project, labelled, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(project.paths.labels)
    run_network = pipeline.teacher_pass.shard_labeller.run_network
    calls = 0

    def interrupted(*args):
        nonlocal calls
        calls += 1
        if calls == 9:
            raise KeyboardInterrupt
        return run_network(*args)

    monkeypatch.setattr(pipeline.teacher_pass.shard_labeller, "run_network", interrupted)
    with pytest.raises(KeyboardInterrupt):
        project.fill_store()
    assert not project.paths.labels.exists()
    assert LabelStore(unfinished(project.paths.labels)).missing_shards() == 12 - 4
    calls = 100
    project.fill_store()
    assert calls - 100 == 16  # 8 shards of 8 views in batches of 4
    assert_same_stores(project.paths.labels, labelled.paths.labels)


def test_a_torn_shard_is_written_again(project, labelled) -> None:
    name = LabelStore(project.paths.labels).layout.buckets[0].name
    torn = unfinish(project.paths.labels, 1).path / "buckets" / name / "assigned_gt/c/1/0"
    torn.write_bytes(torn.read_bytes()[:50])
    project.fill_store()
    assert_same_stores(project.paths.labels, labelled.paths.labels)


@pytest.mark.parametrize("content", [b"", b"\x00", None], ids=["empty", "torn", "missing"])
def test_a_torn_completion_flag_is_not_set(project, labelled, content: bytes | None) -> None:
    name = LabelStore(project.paths.labels).layout.buckets[0].name
    begun = unfinish(project.paths.labels).path
    flag = begun / SHARD_FLAGS / f"{name}.1"
    flag.write_bytes(content) if content is not None else flag.unlink()
    assert LabelStore(begun).missing_shards() == 1
    project.fill_store()
    assert_same_stores(project.paths.labels, labelled.paths.labels)


@pytest.mark.parametrize("array", ["cls_scores", "tail_mean", "box_quality"])
@pytest.mark.parametrize("finished", [True, False], ids=["finished", "unfinished"])
def test_a_damaged_shard_is_made_again_alone(
    project, labelled, monkeypatch, capsys, array: str, finished: bool
) -> None:
    name = LabelStore(project.paths.labels).layout.buckets[0].name
    files = project.paths.labels.glob(f"buckets/{name}/{array}/c/1/**/*")
    damage(next(file for file in files if file.is_file()), "flip in a row")
    if not finished:
        unfinish(project.paths.labels)
    run_network = pipeline.teacher_pass.shard_labeller.run_network
    calls: list[int] = []

    def counted(*args):
        calls.append(1)
        return run_network(*args)

    monkeypatch.setattr(pipeline.teacher_pass.shard_labeller, "run_network", counted)
    project.fill_store()
    assert len(calls) == 2  # one shard of 8 views in batches of 4
    assert f"shard is made again: {array}" in capsys.readouterr().err
    assert_same_stores(project.paths.labels, labelled.paths.labels)


@pytest.mark.parametrize("killed", ["before the swap", "in the swap", "after the swap", "making"])
def test_what_killed_runs_leave_is_ended_and_removed(
    project, labelled, sampled, monkeypatch, killed: str
) -> None:
    """`lad labels --replace` was about to put a store in the place of an older one."""
    store = project.paths.labels
    beside, old = (store.with_name(f"labels.zarr.{end}") for end in ("partial", "removed"))
    if killed == "making":
        shutil.copytree(store / "views", beside.with_name("labels.zarr.partial.partial") / "views")
        shutil.rmtree(store)
    else:
        store.rename(store.with_name("new"))
        shutil.copytree(sampled.paths.labels, store)
        if killed != "before the swap":
            store.rename(old)
        store.with_name("new").rename(store if killed == "after the swap" else beside)
        monkeypatch.setattr(pipeline.teacher_pass.shard_labeller, "run_network", None)
        if killed == "before the swap":
            with pytest.raises(UserError, match="nothing was changed"):
                project.fill_store()
            assert_same_stores(store, sampled.paths.labels)
    project.fill_store(replace=True)
    assert {file.name for file in store.parent.glob("labels.*")} == {
        "labels.zarr", "labels.zarr.lock", "labels.json"}  # fmt: skip
    assert_same_stores(store, labelled.paths.labels)


def test_the_report_of_a_continued_pass_is_that_of_the_whole(project, monkeypatch) -> None:
    """Seconds count all runs; the batches are those that the store was begun with."""
    shutil.rmtree(project.paths.labels)
    label_rows = pipeline.teacher_pass.shard_labeller.label_rows
    sizes: list[int] = []

    def slow(teacher, views, soft):
        sizes.append(len(views.truth.boxes))
        if len(sizes) == 5:
            raise KeyboardInterrupt
        time.sleep(0.2)
        return label_rows(teacher, views, soft)[0], 3

    monkeypatch.setattr(pipeline.teacher_pass.shard_labeller, "label_rows", slow)
    with pytest.raises(KeyboardInterrupt):
        project.fill_store()
    monkeypatch.setattr(time, "sleep", lambda _: None)
    project.change(teacher_pass={"batch_size": 8})
    report = project.fill_store()
    assert sizes == [4] * 25
    assert report["fallback_objects"] == 24 * 3
    assert report["seconds"] > 4 * 0.2
    assert report["seconds"] == pytest.approx(96 / report["views_per_second"])
    assert json.loads(project.paths.labels_report.read_text()) == report
    # Killed after the last shard, before the report.
    project.paths.labels_report.rename(project.paths.labels_report.with_suffix(".json.partial"))
    again = project.fill_store()
    assert again["fallback_objects"] == 24 * 3
    assert again["seconds"] == pytest.approx(report["seconds"])


def test_a_bucket_may_have_a_batch_size_of_its_own(project, labelled, monkeypatch) -> None:
    labels = project.paths.labels
    shutil.rmtree(labels)
    label_rows = pipeline.teacher_pass.shard_labeller.label_rows
    sizes: dict[str, set[int]] = {}

    def noted(teacher, views, soft):
        sizes.setdefault("{}x{}".format(*views.grid.padded), set()).add(len(views.truth.boxes))
        return label_rows(teacher, views, soft)

    monkeypatch.setattr(pipeline.teacher_pass.shard_labeller, "label_rows", noted)
    first, *others = (bucket.name for bucket in LabelStore(labelled.paths.labels).layout.buckets)
    project.change(teacher_pass={"bucket_batch_sizes": {first: 2}})
    project.fill_store()
    assert sizes == {first: {2}} | {name: {4} for name in others}
    assert LabelStore(labels).made_with["bucket_batch_sizes"] == {first: 2}


def test_a_batch_size_of_a_bucket_that_is_not_there_is_refused(project) -> None:
    project.change(teacher_pass={"bucket_batch_sizes": {"192x255": 2}})
    with pytest.raises(UserError, match="no view is padded to 192x255.*did you mean '192x256'"):
        project.fill_store()


def test_the_report_of_another_store_does_not_count(project) -> None:
    report = json.loads(project.paths.labels_report.read_text())
    project.paths.labels_report.write_text(json.dumps(report | {"fingerprint": "x", "views": 5}))
    assert project.fill_store()["views"] == 96


@pytest.mark.parametrize("limit", [300, 3000], ids=["making the store", "writing a shard"])
def test_a_full_disk_is_one_message(project, labelled, monkeypatch, limit: int) -> None:
    """A limit on the size of files stands in for it: EFBIG instead of ENOSPC."""
    store = project.paths.labels
    # Loading a config writes a copy of it.
    loaded = load_teacher(project.paths, load_split(project.paths, "train"))
    monkeypatch.setattr(pipeline.teacher_pass.run, "load_teacher", lambda *_: loaded)
    if limit == 3000:
        unfinish(store, 1)
    else:
        shutil.rmtree(store)
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, unlimited[1]))
    try:
        with pytest.raises(UserError) as error:
            project.fill_store()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    place = store if limit == 300 else unfinished(store)
    assert f"can't write {place}: {os.strerror(errno.EFBIG)}; finished shards stay" in str(
        error.value
    )
    assert "run `lad labels` again" in str(error.value)
    project.fill_store()
    assert_same_stores(store, labelled.paths.labels)


def test_a_finished_store_is_left_alone(project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline.teacher_pass.shard_labeller, "run_network", None)
    report = project.fill_store()
    assert report == json.loads(project.paths.labels_report.read_text())


def test_an_unfinished_store_trains_no_student(project) -> None:
    begun = unfinish(project.paths.labels, 1).path
    with pytest.raises(UserError, match="is not finished; `lad labels` continues it"):
        project.train("lad")
    begun.rename(project.paths.labels)
    with pytest.raises(UserError, match="lacks 1 of 12 shards; run `lad labels` to continue"):
        project.train("lad")


def test_another_teacher_needs_replace(project) -> None:
    before = contents(project.paths.labels)
    file = project.paths.teacher / "weights.pth"
    content = torch.load(file, weights_only=True)
    content["state_dict"]["bbox_head.atss_cls.bias"] += 1
    torch.save(content, file)
    with pytest.raises(UserError, match=r"teacher.weights: expected \w+, found \w+") as error:
        project.fill_store()
    assert "--replace" in str(error.value)
    assert all((array == before[name]).all() for name, array in
               contents(project.paths.labels).items())  # fmt: skip
    project.fill_store(replace=True)
    after = contents(project.paths.labels)
    assert any((array != before[name]).any() for name, array in after.items())


def test_a_reader_of_a_store_that_is_replaced_gets_no_labels_of_another(project) -> None:
    store = LabelStore(project.paths.labels)
    copies = [store, pickle.loads(pickle.dumps(store))]
    before = [store.assigned(view) for view in range(len(store))]
    project.change(labels={"min_iou": 0.3}).fill_store(replace=True)
    for reader in copies:
        with pytest.raises(UserError, match="can't be read: No such file"):
            reader.assigned(0)
    after = LabelStore(project.paths.labels)
    assert all((after.assigned(view) == old).all() for view, old in enumerate(before))
    assert after.fingerprint != store.fingerprint


HOLD_THE_LOCK = """
import fcntl, sys
with open(sys.argv[1], "r+") as lock:
    fcntl.lockf(lock, fcntl.LOCK_EX)
    print(flush=True)
    sys.stdin.read()
"""


def test_a_second_writer_is_kept_out(project) -> None:
    lock = project.paths.labels.with_name("labels.zarr.lock")
    lock.write_text("pid 77 on a machine")
    command = [sys.executable, "-c", HOLD_THE_LOCK, lock]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with pytest.raises(UserError, match=r"\(pid 77 on a machine\) is writing the store"):
            project.fill_store()
        other.stdin.close()
    project.fill_store()


def test_loader_processes_that_outlive_a_kill_hold_no_lock(project) -> None:
    reading, writing = os.pipe()
    with pipeline.teacher_pass.open_store.only_writer(project.paths.labels):
        child = os.fork()
        if child == 0:
            os.read(reading, 1)
            os._exit(0)
    command = [sys.executable, "-c", HOLD_THE_LOCK, project.paths.labels.with_suffix(".zarr.lock")]
    subprocess.run(command, stdin=subprocess.DEVNULL, check=True, timeout=10)
    os.write(writing, b".")
    os.waitpid(child, 0)


def damage(file: Path, how: str) -> None:
    data = bytearray(file.read_bytes())
    if how == "flip in a row":
        data[10] ^= 4
    elif how == "flip in the index":
        data[-30] ^= 4
    elif how == "truncate":
        data = data[:-7]
    file.write_bytes(data)
    if how == "remove":
        file.unlink()


@pytest.mark.parametrize("how", ["flip in a row", "flip in the index", "truncate", "remove"])
def test_damage_is_an_error_that_names_the_view(project, how: str) -> None:
    store = LabelStore(project.paths.labels)
    table = store.layout.table
    view = int(np.flatnonzero((table["bucket"] == 1) & (table["row"] == 0))[0])
    name = store.layout.buckets[1].name
    damage(project.paths.labels / "buckets" / name / "assigned_gt/c/0/0", how)
    expected = f"assigned_gt of view 0 of image {table['image_id'][view]} .*bucket {name}"
    with pytest.raises(UserError, match=expected):
        LabelStore(project.paths.labels).assigned(view)


def test_a_row_that_was_never_written_is_an_error(project) -> None:
    store = LabelStore(project.paths.labels)
    group = zarr.open_group(project.paths.labels, mode="r+")
    group[f"buckets/{store.layout.buckets[0].name}/assigned_gt"][0] = MISSING
    view = int(np.flatnonzero(store.layout.table["bucket"] == 0)[0])
    with pytest.raises(UserError, match="never written"):
        LabelStore(project.paths.labels).assigned(view)


def test_an_unknown_format_version_is_refused(project) -> None:
    group = zarr.open_group(project.paths.labels, mode="r+")
    group.attrs["format_version"] = 99
    with pytest.raises(UserError, match="has format version 99, expected 5"):
        LabelStore(project.paths.labels)


def test_a_store_behind_a_url_is_read_alike(labelled) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(str(labelled.paths.labels), "/far/labels.zarr", recursive=True)
    local, remote = LabelStore(labelled.paths.labels), LabelStore("memory://far/labels.zarr")
    remote.require_complete()
    assert remote.fingerprint == local.fingerprint
    assert remote.fallbacks() == local.fallbacks()
    for name, column in local.layout.table.items():
        np.testing.assert_array_equal(remote.layout.table[name], column)
    for view in range(len(local)):
        np.testing.assert_array_equal(remote.assigned(view), local.assigned(view))
        for name, array in vars(local.soft(view)).items():
            np.testing.assert_array_equal(getattr(remote.soft(view), name), array)


def test_damage_behind_a_url_is_an_error_that_names_the_view(labelled) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(str(labelled.paths.labels), "/damaged/labels.zarr", recursive=True)
    url = "memory://damaged/labels.zarr"
    bucket = LabelStore(url).layout.buckets[0].name
    row = f"/damaged/labels.zarr/buckets/{bucket}/assigned_gt"
    memory.pipe(f"{row}/c/0/0", b"x" + memory.cat(f"{row}/c/0/0")[1:])
    view = int(np.flatnonzero(LabelStore(url).layout.table["bucket"] == 0)[0])
    with pytest.raises(UserError, match=f"{url} is damaged: assigned_gt of view . of image"):
        LabelStore(url).assigned(view)
    memory.pipe(f"{row}/zarr.json", memory.cat(f"{row}/zarr.json").replace(b"-3", b"-1"))
    with pytest.raises(UserError, match=f"not what was written: buckets/{bucket}/assigned_gt"):
        LabelStore(url)


def test_a_store_works_after_it_moved(project) -> None:
    moved = project.folder / "elsewhere.zarr"
    before = LabelStore(project.paths.labels).assigned(3)
    project.paths.labels.rename(moved)
    np.testing.assert_array_equal(LabelStore(moved).assigned(3), before)


class TestTeacherCheckpoints:
    """`teacher.checkpoint`: taken where it fits, refused with a reason where not."""

    def test_one_that_fits_is_taken(self, project) -> None:
        own = project.folder / "own.pth"
        shutil.copy(project.paths.teacher / "weights.pth", own)
        project.change(teacher={"checkpoint": str(own)})
        assert project.make_teacher()["checkpoint"] == str(own)
        project.fill_store()  # the same fingerprint

    def test_missing(self, project) -> None:
        project.change(teacher={"checkpoint": "nowhere.pth"})
        with pytest.raises(UserError, match="the checkpoint nowhere.pth does not exist"):
            project.make_teacher()

    def test_no_checkpoint(self, project) -> None:
        file = project.folder / "text.pth"
        file.write_text("hello")
        project.change(teacher={"checkpoint": str(file)})
        with pytest.raises(UserError, match="checkpoint"):
            project.make_teacher()

    def test_of_another_architecture(self, project) -> None:
        file = project.folder / "other.pth"
        torch.save({"state_dict": {"backbone.conv1.weight": torch.zeros(3)}}, file)
        project.change(teacher={"checkpoint": str(file)})
        with pytest.raises(UserError, match=r"do not fit the model .* is missing; .* more"):
            project.make_teacher()

    def test_code_is_not_run(self, project) -> None:
        ran = project.folder / "ran"
        file = project.folder / "evil.pth"
        torch.save({"state_dict": {}, "meta": Evil(ran)}, file)
        project.change(teacher={"checkpoint": str(file)})
        with pytest.raises(UserError, match="trust_checkpoint: true"):
            project.make_teacher()
        assert not ran.exists()

    def test_of_a_runner(self, project) -> None:
        """mmengine saves its log history; with trust, such a checkpoint loads."""
        runner_checkpoint = project.folder / "epoch_6.pth"
        weights = torch.load(project.paths.teacher / "weights.pth", weights_only=True)
        torch.save(
            weights | {"message_hub": {"loss": HistoryBuffer([1.0], [1])}}, runner_checkpoint
        )
        project.change(teacher={"checkpoint": str(runner_checkpoint)})
        with pytest.raises(UserError, match="HistoryBuffer.*trust_checkpoint"):
            project.make_teacher()
        project.change(teacher={"trust_checkpoint": True})
        project.make_teacher()
        project.fill_store()  # the same fingerprint


class Evil:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model = dict(type='RetinaNet')", "can't be used: its RetinaNet has no bbox_head, so no "),
        ("model = dict(bbox_head=dict(type='FCOSHead'))", "its head is a FCOSHead: it decides wit"),
        ("model = dict(bbox_head=dict(type='MyHead'))", "no family has registered it; the heads "),
        ("model = dict(type='FasterRCNN', roi_head=dict())", "its FasterRCNN has two stages"),
        ("model = dict(type='X', bbox_head=dict(type='DETRHead'))", "its DETRHead has queries"),
        ("epochs = 3", "can't be used: it has no model"),
        ("model = (", "can't be read"),
        (None, "does not exist"),
    ],
    ids=["head", "assigner", "family", "stages", "queries", "model", "broken", "missing"],
)
def test_configs_that_do_not_work(project, text: str | None, message: str) -> None:
    file = project.folder / "config.py"
    if text is not None:
        file.write_text(text)
    project.change(teacher={"config": str(file)})
    with pytest.raises(UserError, match=message):
        project.make_teacher()


def test_a_teacher_of_other_classes_is_refused(project) -> None:
    file = project.paths.split("train") / "split.json"
    content = json.loads(file.read_text())
    content["classes"] = content["classes"][:-1]
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match="knows 10 classes, the data set has 9"):
        project.fill_store()


def test_a_config_of_mmdets_zoo_is_a_teacher_config() -> None:
    import mmdet

    from pipeline.detector.build import build_detector, load_model_config, without_downloads
    from pipeline.heads.registry import family_of

    file = Path(mmdet.__file__).parent / ".mim/configs/paa/paa_r50_fpn_1x_coco.py"
    model = load_model_config(file, num_classes=3)
    head = build_detector(without_downloads(model)).bbox_head
    assert head.num_classes == 3
    assert family_of(head).grid.count((800, 1344)) == 22_400
