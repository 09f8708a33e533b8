"""Kills teacher passes and damages stores, many times: `python -m tests.torture kills|flips`.

kills: passes are killed (SIGKILL) at random moments, many of them inside the making of a store,
    the writing of a shard, or the swap in which a whole store takes the place of an older one, and
    continued. Whatever is flagged complete must be right after each kill, the teacher must never
    run for it again, a store that was whole must be whole after every kill until the next one has
    taken its place, and must equal, array by array, one that nobody interrupted.
flips: single bits are flipped, files truncated or removed, all over a store. A reader must get
    exactly what was written or a `UserError` that says where; `lad verify` must report every
    damage that changes what a reader sees.
"""

import os

os.environ["TQDM_DISABLE"] = "1"

import argparse
import gc
import json
import random
import select
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
import zarr

import pipeline.teacher_pass.shard_labeller
from pipeline.data.coco import load_images
from pipeline.data.dataset import load_split
from pipeline.detector.build import build_detector, load_model_config
from pipeline.detector.model_folder import save_model
from pipeline.ingest.prepare import prepare_data
from pipeline.project.errors import UserError
from pipeline.project.files import PARTIAL, REMOVED
from pipeline.project.paths import Paths
from pipeline.store.reader import LabelStore
from pipeline.store.schema import ASSIGNED_GT, SOFT_ARRAYS, unfinished
from pipeline.store.soft_scores import SoftScores
from pipeline.store.writer import StoreWriter
from pipeline.teacher_pass.run import fill_store
from pipeline.verification.verify import verify_labels
from pipeline.views.plan import view_plan
from stages.params import Params, load_params
from tests.conftest import SETTINGS, write_source

MIN_IOUS = (0.1, 0.3)
"""Two settings that give stores of different fingerprints."""


class Failed(Exception):
    """A promise of the store is broken."""


class Project:
    """A small data set, and a teacher with random weights.

    Args:
        folder: made here.
        images: in the data set.
        **sections: settings that differ from those of the tests.
    """

    def __init__(self, folder: Path, images: int, **sections: dict[str, Any]) -> None:
        self.folder = folder
        self.settings = {n: SETTINGS[n] | sections.get(n, {}) for n in SETTINGS}
        self.settings["data"] |= {"source": str(folder / "source")}
        self.images = images

    def make(self) -> None:
        """Write the data set and the teacher."""
        write_source(self.folder / "source", self.images)
        paths = self.paths(self.folder / "made")
        prepare_data(self.params().data, paths)
        classes = load_split(paths, "train").classes
        torch.manual_seed(0)
        model = load_model_config(self.settings["teacher"]["config"], len(classes))
        model.backbone.init_cfg = None
        save_model(paths.teacher, model, build_detector(model).state_dict(), {})

    def paths(self, out: Path) -> Paths:
        """An output folder with this data and teacher."""
        out.mkdir(exist_ok=True)
        for name in ("data", "teacher"):
            if out.name != "made" and not (out / name).exists():
                (out / name).symlink_to(self.folder / "made" / name)
        return Paths(out)

    def params(self, min_iou: float = MIN_IOUS[0]) -> Params:
        """The settings."""
        file = self.folder / f"params_{min_iou}_{os.getpid()}.yaml"
        labels = self.settings["labels"] | {"min_iou": min_iou}
        file.write_text(yaml.safe_dump(self.settings | {"labels": labels}))
        return load_params(file)


def contents(store: Path) -> dict[str, np.ndarray]:
    """Every array of a store, read by zarr-python."""
    group = zarr.open_group(store, mode="r")
    arrays = {f"views/{name}": array for name, array in group["views"].arrays()}
    for bucket, place in group["buckets"].groups():
        arrays |= {f"buckets/{bucket}/{name}": array for name, array in place.arrays()}
    return {name: np.asarray(array[...]) for name, array in sorted(arrays.items())}


def require_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    if found.keys() != expected.keys():
        raise Failed(f"other arrays: {found.keys() ^ expected.keys()}")
    for name, array in expected.items():
        if found[name].tobytes() != array.tobytes():
            raise Failed(f"{name} differs")


# --- kills ----------------------------------------------------------------------------------


class Child:
    """A forked process that runs one function; what it prints goes to a log.

    Args:
        log: the file.
        work: gets a function that tells the parent about an event, by one byte.
    """

    def __init__(self, log: Path, work: Callable[[Callable[[bytes], Any]], None]) -> None:
        self.log = log
        self.events, tell = os.pipe()
        self.started = time.monotonic()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self.events)
            status = 1
            try:
                with log.open("ab") as out:
                    os.dup2(out.fileno(), 1)
                    os.dup2(out.fileno(), 2)
                torch.set_num_threads(1)
                work(lambda event: os.write(tell, event))
                status = 0
            except BaseException:
                traceback.print_exc()
                sys.stderr.flush()
            finally:
                os._exit(status)
        os.close(tell)

    def wait_for(self, event: bytes, times: int) -> bool:
        """Whether the event came that often before the end of the process."""
        while times:
            byte = os.read(self.events, 1)
            if not byte:
                return False
            times -= byte == event
        return True

    def sleep(self, seconds: float) -> None:
        """Sleep so long, or until the process has told all and ended."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if select.select([self.events], [], [], left)[0] and not os.read(self.events, 100):
                return

    def kill(self) -> bool:
        """Kill it; whether it was still running."""
        os.kill(self.pid, signal.SIGKILL)
        return os.WIFSIGNALED(self.end())

    def end(self) -> int:
        """Wait for the end; the status."""
        status = os.waitpid(self.pid, 0)[1]
        os.close(self.events)
        return status

    def must_succeed(self) -> float:
        """Wait for the end; the seconds it took."""
        if self.end() != 0:
            raise Failed("a process failed:\n" + self.log.read_text()[-5000:])
        return time.monotonic() - self.started


def label(
    project: Project,
    out: Path,
    min_iou: float,
    forwards: Path | None,
    tell: Callable[[bytes], Any],
    spare: bool = False,
) -> None:
    """A teacher pass that tells what it does, and logs the views that the teacher looks at."""
    paths = project.paths(out)
    params = project.params(min_iou)
    if forwards:
        log = forwards.open("a", buffering=1)
        run_network = pipeline.teacher_pass.shard_labeller.run_network
        views = _views(paths)

        def logged(teacher: Any, batch: Any) -> Any:
            for sample in batch["data_samples"]:
                meta = sample.metainfo
                key = (meta["img_id"], meta["img_shape"][:2], meta["flip"])
                log.write(f"{views[key]}\n")
            return run_network(teacher, batch)

        pipeline.teacher_pass.shard_labeller.run_network = logged
    write, create = StoreWriter.write, StoreWriter.create.__func__
    finish = StoreWriter.finish

    def told_write(self: Any, *args: Any) -> None:
        tell(b"w")
        write(self, *args)

    def told_create(cls: Any, *args: Any) -> StoreWriter:
        tell(b"c")
        return create(cls, *args)

    def told_finish(self: Any, *args: Any) -> None:
        tell(b"f")
        finish(self, *args)

    StoreWriter.write = told_write
    StoreWriter.create = classmethod(told_create)
    StoreWriter.finish = told_finish
    tell(b"s")
    fill_store(params.labels, params.teacher_pass, params.views, paths, True, spare)


def _views(paths: Paths) -> dict[Any, int]:
    """The place in the view table by image id, size and flip."""
    plan = view_plan(load_params(next(paths.root.parent.glob("params_*.yaml"))).views)
    images = load_images(load_split(paths, "train").annotations)
    return {
        (image.image_id, view.resized_shape(image.height, image.width), view.flip): (
            place * len(plan) + number
        )
        for place, image in enumerate(images)
        for number, view in enumerate(plan.views)
    }


def inspect(store: Path, references: list[Path], which: int, forwards: Path, state: Path) -> None:
    """After a kill: what was whole is, what is complete is right and not computed again."""
    before = json.loads(state.read_text()) if state.exists() else {}
    now: dict[str, Any] = {"whole": None, "filled": None, "complete": []}
    fingerprints = [LabelStore(reference).fingerprint for reference in references]
    # Between the two renames of a swap the older one is still whole.
    place = store if store.exists() else store.with_name(store.name + REMOVED)
    if place.exists():
        now["whole"] = fingerprints.index(LabelStore(place).fingerprint)
        require_same(contents(place), contents(references[now["whole"]]))
        LabelStore(place).require_complete()
    elif before.get("whole") is not None:
        raise Failed("a whole store is gone")
    if unfinished(store).exists():
        found = LabelStore(unfinished(store))
        now["filled"] = fingerprints.index(found.fingerprint)
        expected = contents(references[now["filled"]])
        for shard in found.complete_shards():
            now["complete"] += shard.views.tolist()
            bucket = f"buckets/{found.layout.buckets[shard.bucket].name}"
            for view in shard.views.tolist():
                row = found.layout.table["row"][view]
                got = {ASSIGNED_GT: found.assigned(view)} | stored(found.soft(view))
                for name, array in got.items():
                    if array.tobytes() != expected[f"{bucket}/{name}"][row].tobytes():
                        raise Failed(f"{found.place(name, view)} is flagged complete and wrong")
    looked_at = {int(line) for line in forwards.read_text().split()}
    # The pass was for the labels `which`.
    if before.get("filled") == which and (again := looked_at & set(before["complete"])):
        raise Failed(f"the teacher ran again for views {again}")
    state.write_text(json.dumps(now))


def stored(soft: SoftScores) -> dict[str, np.ndarray]:
    """Soft scores as a store has them."""
    quality = np.stack((soft.max_iou, soft.quality))
    return dict(
        zip(
            SOFT_ARRAYS,
            (soft.codes, soft.tail_mean, soft.tail_scale, soft.distances, quality),
            strict=True,
        )
    )


def kills(count: int, folder: Path, seed: int, images: int) -> None:
    """Kill `count` passes."""
    chance = random.Random(seed)
    project = Project(folder, images)
    log, forwards, state = folder / "log", folder / "forwards", folder / "state.json"
    out = folder / "out"
    references = [folder / f"reference_{number}" for number in range(len(MIN_IOUS))]
    stores = [reference / "labels.zarr" for reference in references]
    Child(log, lambda tell: project.make()).must_succeed()
    length = 0.0
    for reference, min_iou in zip(references, MIN_IOUS, strict=True):
        child = Child(log, lambda tell, r=reference, m=min_iou: label(project, r, m, None, tell))
        length = child.must_succeed()

    hits: Counter[str] = Counter()
    passes: Counter[str] = Counter()
    finished = which = 0
    while hits.total() < count:
        forwards.write_text("")
        spare = chance.random() < 0.5
        child = Child(
            log,
            lambda tell, m=MIN_IOUS[which], s=spare: label(project, out, m, forwards, tell, s),
        )
        moment = chance.choice(["any", "write", "swap", "create"])
        if moment == "any":
            child.sleep(chance.uniform(0, length))
        elif moment == "write":
            if child.wait_for(b"w", chance.randint(1, 6)):
                child.sleep(chance.uniform(0, 0.06))
        elif moment == "swap":
            if child.wait_for(b"f", 1):
                child.sleep(chance.uniform(0, 0.1))
        elif child.wait_for(b"c", 1):
            child.sleep(chance.uniform(0, 0.15))
        passes[moment] += 1
        if child.kill():
            hits[moment] += 1
        Child(
            log,
            lambda tell, w=which: inspect(out / "labels.zarr", stores, w, forwards, state),
        ).must_succeed()
        if json.loads(state.read_text())["whole"] == which:
            finished += 1
            # The next pass replaces this store by one of the other fingerprint.
            which = 1 - which
    Child(log, lambda tell: label(project, out, MIN_IOUS[which], forwards, tell)).must_succeed()

    def last(tell: Any) -> None:
        require_same(contents(out / "labels.zarr"), contents(stores[which]))
        found = verify_labels(project.paths(out), None, with_teacher=True)
        if found.problems:
            raise Failed("\n".join(found.problems))
        left = {file.name for file in out.glob("labels.zarr*")}
        left -= {"labels.zarr", "labels.zarr.lock"}
        left |= {file.name for file in (out / "labels.zarr").rglob(f"*{PARTIAL}")}
        if left:
            raise Failed(f"temporary files are left over: {left}")

    Child(log, last).must_succeed()
    where = ", ".join(f"{moment}: {hits[moment]} of {passes[moment]}" for moment in sorted(passes))
    print(
        f"{count} kills (of the passes by moment, {where}): {finished + 1} finished stores equal "
        "those of uninterrupted passes and stay whole until the next one is, no teacher forward "
        "for a complete shard, verify passes"
    )


# --- flips ----------------------------------------------------------------------------------


def read_all(path: Path) -> dict[str, Any]:
    """All that a student can read of a store; a `UserError` where that is what it gets."""
    try:
        store = LabelStore(path)
        store.require_complete()
    except UserError as error:
        if str(path) not in str(error):
            raise Failed(f"the error does not name the store: {error}") from None
        return {"": error}
    found: dict[str, Any] = {
        "fingerprint": store.fingerprint,
        "made_with": store.made_with,
        "buckets": store.layout.buckets,
        "shard_rows": store.layout.shard_rows,
        "soft_classes": store.layout.soft_classes,
    }
    found |= {f"views/{name}": c.tobytes() for name, c in store.layout.table.items()}
    for view in range(len(store)):
        for name in ("assigned", "soft"):
            try:
                value = getattr(store, name)(view)
                parts = vars(value).values() if name == "soft" else [value]
                found[f"{name} {view}"] = [part.tobytes() for part in parts]
            except UserError as error:
                image, number = store.layout.table["image_id"][view], view % len(store.plan())
                named = f"of view {number} of image {image}"
                if str(path) not in str(error) or named not in str(error):
                    raise Failed(f"the error does not name store and view: {error}") from None
                found[f"{name} {view}"] = error
    return found


def read_with_zarr(path: Path) -> Any:
    """All that zarr-python reads of a store, or that it fails."""
    try:
        attributes = dict(zarr.open_group(path, mode="r").attrs)
        return attributes, {n: (a.dtype, a.tobytes()) for n, a in contents(path).items()}
    except Exception as error:
        return error


def flips(count: int, folder: Path, seed: int, images: int) -> None:
    """Damage a store `count` times."""
    torch.set_num_threads(1)
    chance = random.Random(seed)
    project = Project(
        folder,
        images,
        views={"scales": [[96, 64]], "flips": ["none", "horizontal"]},
        teacher_pass={"shard_rows": 4},
    )
    project.make()
    paths = project.paths(folder / "out")
    settings = project.params()
    fill_store(settings.labels, settings.teacher_pass, settings.views, paths, replace=False)
    store = paths.labels
    pristine, through_zarr = read_all(store), read_with_zarr(store)
    kinds: dict[str, list[Path]] = {}
    for file in sorted(store.rglob("*")):
        if file.is_file():
            place = file.relative_to(store)
            array = place.parts[2] if place.parts[0] == "buckets" and "c" in place.parts else ""
            kind = "metadata" if file.name == "zarr.json" else array or "views"
            kind = "attributes" if file == store / "zarr.json" else kind
            kinds.setdefault(kind, []).append(file)
            if array and len(place.parts) > 5:
                kinds.setdefault("index", []).append(file)

    outcomes: Counter[str] = Counter()
    for number in range(count):
        kind = sorted(kinds)[number % len(kinds)]
        file = chance.choice(kinds[kind])
        before = file.read_bytes()
        index = (4 * 16 + 4) if kind == "index" else len(before)
        place = chance.randrange(len(before) - index, len(before))
        damaged = bytearray(before)
        how = chance.random()
        if how < 0.05:
            what = f"{file.relative_to(store)} removed"
        elif how < 0.25:
            what = f"{file.relative_to(store)} cut to {place} of {len(before)} bytes"
            del damaged[place:]
        else:
            bit = chance.randrange(8)
            what = f"bit {bit} of byte {place} of {file.relative_to(store)}"
            damaged[place] ^= 1 << bit
        file.write_bytes(damaged)
        if how < 0.05:
            file.unlink()
        try:
            outcomes[kind, _judge(paths, pristine, through_zarr)] += 1
        except Exception as error:
            raise Failed(f"{what}: {type(error).__name__}: {error}") from error
        file.write_bytes(before)
    if read_all(store) != pristine or verify_labels(paths, None, with_teacher=False).problems:
        raise Failed("the store is not what it was")
    for kind in sorted(kinds):
        counts = {outcome: n for (k, outcome), n in sorted(outcomes.items()) if k == kind}
        print(f"  {kind}: " + ", ".join(f"{n} {outcome}" for outcome, n in counts.items()))
    print(f"{count} damages: never wrong data, every one that can be seen is reported by verify")


def _judge(paths: Paths, pristine: dict[str, Any], through_zarr: Any) -> str:
    """What a damage does to readers; raises if a promise is broken."""
    found = read_all(paths.labels)
    refused = [place for place, value in found.items() if isinstance(value, UserError)]
    for place, value in found.items():
        if place not in refused and value != pristine[place]:
            raise Failed(f"wrong data: {place}")
    seen = bool(refused) or read_with_zarr(paths.labels) != through_zarr
    verified = verify_labels(paths, None, with_teacher=False)
    if seen and not verified.problems:
        raise Failed(f"verify does not report it ({refused[:3]})")
    if verified.problems:
        return "refused and reported" if refused else "reported"
    return "without effect"


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["kills", "flips"])
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--images", type=int, help="in the data set")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    # All that was imported: children then have little garbage to look through, and to copy.
    gc.freeze()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        work, images = {"kills": (kills, 24), "flips": (flips, 7)}[arguments.what]
        work(arguments.count, Path(folder), arguments.seed, arguments.images or images)
    print(f"took {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
