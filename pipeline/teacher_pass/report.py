"""The report of a teacher pass: what it wrote, and what it cost over all the runs that it took."""

import json
import time
from pathlib import Path
from typing import Any

from pipeline.project.files import PARTIAL, bytes_on_disk, write_whole
from pipeline.store.positives import count_positives
from pipeline.store.reader import LabelStore
from pipeline.store.schema import ASSIGNED_GT, SOFT_ARRAYS
from pipeline.teacher_pass.shard_labeller import writing


class PassClock:
    """The time of the whole pass, over all the runs that it takes; and its report.

    Args:
        file: of the report.
        fingerprint: digest of the store's fingerprint; what another pass left does not count.
    """

    def __init__(self, file: Path, fingerprint: str) -> None:
        self.file = file
        self.fingerprint = fingerprint
        self._running = file.with_name(file.name + PARTIAL)
        before = _read_json(self._running, fingerprint) or {"views": 0, "seconds": 0.0}
        self.views, self.seconds = before["views"], before["seconds"]

    def start(self) -> None:
        """Begin to measure."""
        self._last = time.perf_counter()

    def add(self, views: int) -> None:
        """Count views, and the time since the last ones."""
        now = time.perf_counter()
        self.views += views
        self.seconds += now - self._last
        self._last = now
        self._write(self._running, {"views": self.views, "seconds": self.seconds})

    def seconds_per_view(self) -> float | None:
        """None if no run has measured it."""
        return self.seconds / self.views if self.views else None

    def report(self) -> dict[str, Any] | None:
        """The report that `finish` has written, if the pass came to its end."""
        return _read_json(self.file, self.fingerprint)

    def finish(self, report: dict[str, Any]) -> dict[str, Any]:
        """Write the report, with the digest of its store's fingerprint."""
        report = self._write(self.file, report)
        self._running.unlink(missing_ok=True)
        return report

    def _write(self, file: Path, content: dict[str, Any]) -> dict[str, Any]:
        content = {"fingerprint": self.fingerprint} | content
        with writing(file):
            write_whole(file, json.dumps(content, indent=1))
        return content


def _read_json(file: Path, fingerprint: str) -> dict[str, Any] | None:
    """The content of a whole file that belongs to this fingerprint."""
    try:
        content: dict[str, Any] = json.loads(file.read_text())
        return content if content["fingerprint"] == fingerprint else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def describe_store(
    store: LabelStore, views_per_image: int, seconds_per_view: float | None
) -> dict[str, Any]:
    """What the report says of a finished store."""
    path = Path(store.path)
    views = len(store)
    positives = count_positives(store, range(views)).per_object
    sizes = {
        name: sum(bytes_on_disk(array) for array in path.glob(f"buckets/*/{name}"))
        for name in (ASSIGNED_GT, *SOFT_ARRAYS)
    }
    size = bytes_on_disk(path)
    return {
        "images": views // views_per_image,
        "views": views,
        "views_per_image": views_per_image,
        "seconds": None if seconds_per_view is None else seconds_per_view * views,
        "views_per_second": None if seconds_per_view is None else 1 / seconds_per_view,
        "bytes_on_disk": size,
        "bytes_per_view": size / views,
        "bytes_per_view_by_array": {name: size / views for name, size in sizes.items() if size},
        "objects": store.made_with.get("objects"),
        "objects_with_positives": len(positives),
        "positives_per_object": int(positives.sum()) / max(len(positives), 1),
        "fallback_objects": store.fallbacks(),
    }
