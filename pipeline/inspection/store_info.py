"""What a label store holds, in numbers and as text."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.project.files import bytes_on_disk
from pipeline.project.text import markdown_table
from pipeline.store.positives import PositiveCounts, count_positives, doubt
from pipeline.store.reader import LabelStore
from pipeline.store.schema import ASSIGNED_GT, Shard

SAMPLE = 4096
"""Views whose assignments are read, at most."""


@dataclass(frozen=True)
class ArraySize:
    """What an array takes on disk, in its complete shards of all buckets.

    Attributes:
        stored: bytes.
        dense: bytes of the same rows as plain int16 (assignments) or float32 (scores).
    """

    stored: int
    dense: int


@dataclass(frozen=True)
class Summary:
    """What a store holds.

    Attributes:
        complete_views: views in complete shards, for each bucket.
        sizes: by array; empty for a store behind a URL.
        total: bytes of all files of the store; None behind a URL.
        positives: of at most `SAMPLE` views, None while no shard is complete.
    """

    store: LabelStore
    complete_views: list[int]
    sizes: dict[str, ArraySize]
    total: int | None
    positives: PositiveCounts | None


def summarise(path: Path | str) -> Summary:
    """Read what a store says of itself, and a sample of its assignments.

    Args:
        path: a folder or a URL, as for `LabelStore`. The store may be incomplete.

    Raises:
        UserError: there is no store, or it is damaged.
    """
    store = LabelStore(path)
    shards = store.complete_shards()
    views = [0] * len(store.layout.buckets)
    for shard in shards:
        views[shard.bucket] += len(shard.views)
    local = None if store.remote else Path(store.path)
    return Summary(
        store=store,
        complete_views=views,
        sizes=_sizes(local, store, shards) if local else {},
        total=bytes_on_disk(local) if local else None,
        positives=_positives(store, shards) if shards else None,
    )


def _sizes(path: Path, store: LabelStore, shards: Sequence[Shard]) -> dict[str, ArraySize]:
    stored: dict[str, int] = {}
    dense: dict[str, int] = {}
    for shard in shards:
        bucket = store.layout.buckets[shard.bucket]
        for name, spec in bucket.arrays(store.layout.soft_classes).items():
            folder = path / "buckets" / bucket.name / name / "c" / str(shard.number)
            stored[name] = stored.get(name, 0) + bytes_on_disk(folder)
            entry = 2 if name == ASSIGNED_GT else 4
            dense[name] = dense.get(name, 0) + len(shard.views) * math.prod(spec.row) * entry
    return {name: ArraySize(stored[name], dense[name]) for name in stored}


def _positives(store: LabelStore, shards: Sequence[Shard]) -> PositiveCounts:
    there = np.concatenate([shard.views for shard in shards])
    rng = np.random.default_rng(0)
    views = np.sort(rng.choice(there, min(len(there), SAMPLE), replace=False))
    return count_positives(store, views.tolist())


def describe(summary: Summary) -> str:
    """The summary as text: short tables first, the fingerprint last."""
    store = summary.store
    fingerprint = store.fingerprint
    lines = [f"label store {store.path}", _completeness(summary), ""]
    lines += store.plan().describe()
    lines += ["", *_bucket_lines(summary)]
    lines += ["", *_size_lines(summary), "", *_positive_lines(summary)]
    lines += ["", f"fingerprint {store.fingerprint_digest}", *_nested(fingerprint, "  ")]
    lines += ["", "made with", *_nested(store.made_with, "  ")]
    return "\n".join(lines) + "\n"


def _completeness(summary: Summary) -> str:
    store = summary.store
    shards = store.layout.shard_count()
    missing = store.missing_shards()
    text = (
        f"{sum(summary.complete_views):,} of {len(store):,} views in "
        f"{shards - missing:,} of {shards:,} shards of {store.layout.shard_rows} rows"
    )
    return f"incomplete: {text}; `lad labels` continues it" if missing else f"complete: {text}"


def _bucket_lines(summary: Summary) -> list[str]:
    buckets = zip(summary.store.layout.buckets, summary.complete_views, strict=True)
    return markdown_table(
        ("bucket (height x width)", ">priors", ">views", ">complete"),
        (
            (bucket.name, f"{bucket.priors:,}", f"{bucket.rows:,}", f"{complete:,}")
            for bucket, complete in buckets
        ),
    )


def _size_lines(summary: Summary) -> list[str]:
    views = sum(summary.complete_views)
    if summary.total is None:
        return ["sizes: counted for stores on a local disk only"]
    if not views:
        return ["sizes: no shard is complete"]
    sizes = dict(summary.sizes)
    soft = [size for name, size in sizes.items() if name != ASSIGNED_GT]
    if soft:
        sizes["soft scores"] = ArraySize(sum(s.stored for s in soft), sum(s.dense for s in soft))
    lines = markdown_table(
        ("array", ">bytes a view", "dense, as", ">bytes a view", ">times smaller"),
        (
            (
                name,
                f"{size.stored / views:,.0f}",
                "int16" if name == ASSIGNED_GT else "float32",
                f"{size.dense / views:,.0f}",
                f"{size.dense / size.stored:,.0f}",
            )
            for name, size in sizes.items()
        ),
    )
    return [*lines, f"all files: {summary.total:,} bytes"]


def _positive_lines(summary: Summary) -> list[str]:
    found = summary.positives
    if found is None:
        return ["positives: no shard is complete"]
    complete = sum(summary.complete_views)
    sample = "all" if found.views == complete else f"a random {found.views:,}"
    counts = found.per_object
    lines = [
        f"positives, of {sample} of the {complete:,} complete views: "
        f"{counts.sum() / found.views:.1f} a view ({counts.sum() / found.priors:.2%} of priors); "
        f"{found.without:,} views have none"
    ]
    if len(counts):
        lines.append(
            f"positives an object, of the {len(counts):,} with any: {counts.mean():.1f} on "
            f"average, {np.median(counts):.0f} median, {counts.max()} at most"
        )
    lines.append(f"objects whose costs allowed no mixture: {summary.store.fallbacks():,}")
    objects = summary.store.made_with.get("objects")
    if objects is not None:
        expected = round(objects * found.views / len(summary.store))
        if said := doubt(len(counts), expected):
            lines.append(f"note: {said}")
    return lines


def _nested(values: dict[str, Any], indent: str) -> Iterator[str]:
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield f"{indent}{name}:"
            yield from _nested(value, indent + "  ")
        else:
            yield f"{indent}{name}: {_flat(value)}"


def _flat(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
