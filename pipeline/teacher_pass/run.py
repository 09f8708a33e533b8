"""The teacher pass: run the teacher over every view once and fill the label store."""

from functools import partial
from itertools import chain
from typing import Any

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from pipeline.data.coco import load_images
from pipeline.data.dataset import load_split
from pipeline.detector.build import preprocessing
from pipeline.detector.small_views import large_enough
from pipeline.loading.collate import view_loader
from pipeline.loading.dataset import view_dataset
from pipeline.loading.transforms import ALL_OBJECTS
from pipeline.project.full_memory import full_memory
from pipeline.project.machine import loader_processes
from pipeline.project.paths import Paths
from pipeline.store.positives import count_objects
from pipeline.store.reader import LabelStore
from pipeline.store.schema import Shard, plan_store
from pipeline.store.writer import StoreWriter
from pipeline.teacher_pass.background import Background
from pipeline.teacher_pass.cluster import MachineShare, labelled_shards
from pipeline.teacher_pass.fingerprint import code_and_versions, labels_fingerprint
from pipeline.teacher_pass.label import batches_of, load_teacher
from pipeline.teacher_pass.open_store import only_writer, open_store, require_buckets
from pipeline.teacher_pass.report import PassClock, describe_store
from pipeline.teacher_pass.settings import Labels, TeacherPass
from pipeline.teacher_pass.shard_labeller import AHEAD, ShardLabeller, writing
from pipeline.teacher_pass.teacher import Numerics
from pipeline.views.plan import view_plan
from pipeline.views.priors import PaddedViews
from pipeline.views.settings import Views


def fill_store(
    labels: Labels,
    teacher_pass: TeacherPass,
    views: Views,
    paths: Paths,
    replace: bool,
    spare: bool = False,
) -> dict[str, Any]:
    """Fill the label store, continuing one that is incomplete.

    Args:
        labels: what is stored.
        teacher_pass: how it is made.
        views: which views there are.
        paths: where data and teacher are, and where the store goes.
        replace: make a new store where the one that is there is another.
        spare: leave hard links to the finished store beside it; see `StoreWriter.finish`.

    Returns:
        The report: counts, seconds of the whole pass, sizes.

    Raises:
        UserError: data or teacher are missing, the store that is there has another fingerprint or
            is unfinished and was begun with other code, another process is writing it, or it
            can't be written.
    """
    train = load_split(paths, "train")
    teacher, model = load_teacher(paths, train, Numerics.of(labels))
    plan = view_plan(views)
    soft = labels.soft_settings()
    images = load_images(train.annotations)
    layout = plan_store(
        images,
        PaddedViews(plan, teacher.grid, preprocessing(model)["pad_size_divisor"]),
        teacher_pass.shard_rows,
        len(train.classes) if soft else 0,
    )
    require_buckets(teacher_pass.bucket_batch_sizes, layout)
    fingerprint = labels_fingerprint(train, teacher, model, plan, soft)
    local = teacher_pass.scheduler == "local"
    made_with: dict[str, Any] = code_and_versions() | {
        "batch_size": teacher_pass.batch_size,
        "bucket_batch_sizes": teacher_pass.bucket_batch_sizes,
        "workers": loader_processes(teacher_pass.workers),
        "threads": torch.get_num_threads() if local else MachineShare.of(teacher_pass).threads,
        "objects": count_objects(images, plan),
        "images": str(train.images_folder),
        "teacher": str(paths.teacher),
    }
    with only_writer(paths.labels):
        store = open_store(paths.labels, layout, fingerprint, made_with, replace)
        writer, pending = store.writer, store.pending
        clock = PassClock(paths.labels_report, LabelStore(writer.path).fingerprint_digest)
        if pending:
            remedy = (
                f"remove {writer.path}, which keeps the batch sizes that it was begun with, "
                "lower teacher_pass.batch_size (or teacher_pass.bucket_batch_sizes) and run "
                "`lad labels` again"
            )
            large = large_enough(teacher.detector, "teacher_pass.batch_size")
            with full_memory(remedy), large, _progress(writer, pending) as bar:
                if local:
                    dataset = view_dataset(train, plan, ALL_OBJECTS)
                    # Rounding depends on what is in a batch: an unfinished store keeps its own.
                    batches = (batches_of(one, writer.layout, store.made_with) for one in pending)
                    loader = view_loader(
                        dataset, chain.from_iterable(batches), teacher_pass.workers
                    )
                    _label_here(ShardLabeller(teacher, soft, writer), pending, loader, clock, bar)
                else:
                    with labelled_shards(
                        teacher_pass, paths, writer.path, train, pending
                    ) as shards:
                        clock.start()
                        for count in shards:
                            clock.add(count)
                            bar.update(count)
        if writer.path != paths.labels:
            with writing(paths.labels):
                writer.finish(paths.labels, spare)
        if not pending and (report := clock.report()):
            return report
        whole = LabelStore(paths.labels)
        return clock.finish(describe_store(whole, len(plan), clock.seconds_per_view()))


def _progress(writer: StoreWriter, pending: list[Shard]) -> tqdm:
    total = len(writer.layout.table["row"])
    left = sum(len(shard.views) for shard in pending)
    return tqdm(total=total, initial=total - left, desc="labels", unit="view", mininterval=2)


def _label_here(
    labeller: ShardLabeller,
    pending: list[Shard],
    loader: DataLoader[Any],
    clock: PassClock,
    bar: tqdm,
) -> None:
    """Label the pending shards, whose batches come from the loader in their order."""
    batches = iter(loader)
    clock.start()
    with Background(AHEAD, labeller.teacher.device) as background:
        for shard in pending:
            # Before the shard counts as complete: every complete shard has been timed.
            timed = partial(clock.add, len(shard.views))
            labeller.label(shard, batches, background, bar.update, timed)
