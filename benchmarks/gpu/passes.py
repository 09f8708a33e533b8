"""The teacher pass against the bare inference loop, at COCO's size, and what limits it."""

import statistics
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.device import get_device
from torch.utils.data import DataLoader

from benchmarks.measure import Figures, Ratio, timed
from benchmarks.random_teacher import CONFIGS
from benchmarks.synthetic import quieten, write_project
from pipeline.data.coco import load_images
from pipeline.data.dataset import load_split
from pipeline.detector.build import load_model_config
from pipeline.detector.model_folder import load_model
from pipeline.loading.collate import view_loader
from pipeline.loading.dataset import ViewDataset, view_dataset
from pipeline.loading.transforms import ALL_OBJECTS
from pipeline.project.paths import Paths
from pipeline.store.schema import StoreLayout, plan_store
from pipeline.store.writer import StoreWriter
from pipeline.teacher_pass.background import Background
from pipeline.teacher_pass.label import batches_of, label_rows, load_teacher, run_network
from pipeline.teacher_pass.settings import Labels
from pipeline.teacher_pass.shard_labeller import AHEAD, ShardLabeller
from pipeline.teacher_pass.teacher import Numerics
from pipeline.views.plan import view_plan
from pipeline.views.priors import PaddedViews
from stages.params import Params

NUMERICS: dict[str, dict[str, Any]] = {
    "float32": {},
    "bf16": {"autocast": "bfloat16"},
    "fp16": {"autocast": "float16"},
    "float32, channels_last": {"channels_last": True},
    "bf16, channels_last": {"autocast": "bfloat16", "channels_last": True},
}
BARS = {("paa_r50", "float32"): 0.95, ("paa_r50", "bf16"): 0.9}
"""The rate of the pass over that of the bare loop, at least."""


@dataclass(frozen=True)
class _Effort:
    """How much is measured.

    Attributes:
        networks: names of configs.
        size: (width, height) of views.
        batch: views that a network sees at once.
        views: of a pass.
        repeats: passes of each that has a bar; of others one.
    """

    networks: tuple[str, ...] = ("paa_r50", "paa_r101")
    size: tuple[int, int] = (1333, 800)
    batch: int = 16
    views: int = 384
    repeats: int = 2


_QUICK = _Effort(("paa_r18_quarter",), (128, 96), batch=4, views=8, repeats=1)


def measure(quick: bool) -> Iterator[Figures]:
    """Passes and bare loops in turn, in all numerics; then each piece of a pass on its own."""
    effort = _QUICK if quick else _Effort()
    for network in effort.networks:
        with tempfile.TemporaryDirectory() as folder:
            params, paths = write_project(
                Path(folder),
                load_model_config(CONFIGS / f"{network}.py"),
                effort.views,
                effort.size,
                classes=80,
                teacher_pass={"batch_size": effort.batch},
            )
            quieten(paths)
            for name, numerics in NUMERICS.items():
                labels = params.labels.model_copy(update=numerics)
                project = _Project(params, labels, paths)
                yield _measure_pass(
                    project, f"{network}, {name}", effort, BARS.get((network, name))
                )
                if not numerics:
                    yield _measure_pieces(project, network, effort)


class _Project:
    """All that a pass needs, loaded.

    Args:
        params: the settings.
        labels: those of the pass.
        paths: where data and teacher are.
    """

    def __init__(self, params: Params, labels: Labels, paths: Paths) -> None:
        self.labels = labels
        self.workers = params.teacher_pass.workers
        split = load_split(paths, "train")
        self.teacher, _ = load_teacher(paths, split, Numerics.of(labels))
        self.bare, model = load_model(paths.teacher, "lad teacher")
        self.bare.to(get_device())
        plan = view_plan(params.views)
        self.dataset: ViewDataset = view_dataset(split, plan, ALL_OBJECTS)
        padded = PaddedViews(plan, self.teacher.grid, model.data_preprocessor.pad_size_divisor)
        images = load_images(split.annotations)
        self.layout: StoreLayout = plan_store(images, padded, params.teacher_pass.shard_rows, 80)
        self.shards = list(self.layout.shards())
        self.batches = [
            batch
            for shard in self.shards
            for batch in batches_of(shard, self.layout, params.teacher_pass.model_dump())
        ]

    def loader(self) -> DataLoader[Any]:
        """Loads all views; what the pass and the bare loop share."""
        return view_loader(self.dataset, self.batches, self.workers)

    def run_pass(self) -> None:
        """Label and write all views, from starting the loader to the last shard on the disk."""
        with tempfile.TemporaryDirectory() as folder:
            writer = StoreWriter.create(Path(folder) / "labels.zarr", self.layout, {})
            labeller = ShardLabeller(self.teacher, self.labels.soft_settings(), writer)
            batches = iter(self.loader())
            with Background(AHEAD, self.teacher.device) as background:
                for shard in self.shards:
                    labeller.label(shard, batches, background)
            assert not list(writer.pending())

    def run_bare(self) -> None:
        """Show all views to the network, with mmdet's own code alone."""
        dtype = self.labels.autocast
        autocast = torch.autocast(get_device(), getattr(torch, dtype)) if dtype else nullcontext()
        if self.labels.channels_last:
            torch.nn.Module.to(self.bare, memory_format=torch.channels_last)
        with torch.inference_mode(), autocast:
            for batch in self.loader():
                inputs = self.bare.data_preprocessor(batch)["inputs"]
                if self.labels.channels_last:
                    inputs = inputs.contiguous(memory_format=torch.channels_last)
                self.bare.bbox_head(self.bare.extract_feat(inputs))


def _measure_pass(project: _Project, name: str, effort: _Effort, bar: float | None) -> Figures:
    _warm_up(project)
    seconds: dict[str, list[float]] = {"pass": [], "bare": []}
    busy: list[float] = []
    for _ in range(effort.repeats if bar else 1):
        seconds["bare"].append(timed(project.run_bare))
        with _busy_share(busy):
            seconds["pass"].append(timed(project.run_pass))
    rates = {way: effort.views / statistics.median(spent) for way, spent in seconds.items()}
    ratio = Ratio(
        f"teacher pass, {name}", rates["pass"], "bare inference", rates["bare"], "views/s", bar
    )
    share = f"{statistics.mean(busy):.0f} %" if busy else "unknown"
    note = (
        f"{effort.views} JPEGs of {effort.size[0]} x {effort.size[1]}, {effort.batch} at once; "
        f"all labels written; from the start of the loader; GPU busy: {share}"
    )
    return Figures([ratio], note, {"seconds": seconds, "busy": busy})


def _warm_up(project: _Project) -> None:
    """Have the GPU choose and load its kernels, in the network and after it."""
    batch = next(iter(view_loader(project.dataset, project.batches[:1], 0)))
    for _ in range(2):
        label_rows(project.teacher, run_network(project.teacher, batch), None)


def _measure_pieces(project: _Project, network: str, effort: _Effort) -> Figures:
    """How many views a second each piece of a pass manages alone."""
    teacher, soft = project.teacher, project.labels.soft_settings()
    batch = next(iter(view_loader(project.dataset, project.batches[:1], 0)))
    shown = run_network(teacher, batch)
    rows, _ = label_rows(teacher, shown, soft)

    shard = project.shards[0]
    whole = {n: np.resize(v, (len(shard.views), *v.shape[1:])) for n, v in rows.items()}
    with tempfile.TemporaryDirectory() as folder:
        writer = StoreWriter.create(Path(folder) / "labels.zarr", project.layout, {})
        pieces: dict[str, tuple[Callable[[], object], int]] = {
            "loading": (lambda: sum(1 for _ in project.loader()), effort.views),
            "network": (lambda: run_network(teacher, batch), effort.batch),
            "assignment and coding": (lambda: label_rows(teacher, shown, soft), effort.batch),
            "writing": (
                lambda: writer.write(shard, writer.encode(shard, whole)),
                len(shard.views),
            ),
        }
        rates = {name: views / _median(call, effort) for name, (call, views) in pieces.items()}
    slowest = min(rates, key=lambda name: rates[name])
    lines = [f"- {name}: {rate:.0f} views/s" for name, rate in rates.items()]
    note = f"{network}, float32, each piece alone; {slowest} limits the pass\n\n" + "\n".join(lines)
    return Figures([], note, {"views_per_second": rates})


def _median(call: Callable[[], object], effort: _Effort) -> float:
    call()
    return statistics.median(timed(call) for _ in range(effort.repeats))


@contextmanager
def _busy_share(found: list[float]) -> Iterator[None]:
    """Adds how many percent of the time the GPU was at work, as `nvidia-smi` samples it."""
    if not torch.cuda.is_available():
        yield
        return
    device = f"GPU-{torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}"
    call = ["nvidia-smi", f"--id={device}", "--query-gpu=utilization.gpu", "-lms", "200"]
    call += ["--format=csv,noheader,nounits"]
    try:
        sampler = subprocess.Popen(call, stdout=subprocess.PIPE, text=True)
    except FileNotFoundError:
        yield
        return
    try:
        yield
    finally:
        sampler.terminate()
        output, _ = sampler.communicate()
        samples = [float(line) for line in output.split() if line.strip().isdigit()]
        if samples:
            found.append(statistics.mean(samples))
