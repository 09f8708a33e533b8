"""`lad store info`: what is said of complete, incomplete and empty stores; and docs/store.md."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from pipeline.data.ground_truth import BACKGROUND
from pipeline.inspection.store_info import describe, summarise
from pipeline.project.errors import UserError
from pipeline.store.reader import LabelStore
from pipeline.store.writer import StoreWriter
from tests.unfinished import unfinish

ROOT = Path(__file__).parents[2]


@pytest.fixture
def incomplete(labelled, tmp_path) -> Path:
    """The store without one shard of its first bucket."""
    path = labelled.copy(tmp_path).paths.labels
    name = LabelStore(path).layout.buckets[0].name
    shutil.rmtree(path / "buckets" / name / "cls_scores/c/1")
    return unfinish(path, 1).path


@pytest.fixture
def empty(labelled, tmp_path) -> Path:
    """A store that was only begun."""
    store = LabelStore(labelled.paths.labels)
    path = tmp_path / "empty.zarr"
    StoreWriter.create(path, store.layout, store.fingerprint)
    return path


def test_a_complete_store(labelled) -> None:
    found = summarise(labelled.paths.labels)
    text = describe(found)
    assert "complete: 96 of 96 views in 12 of 12 shards of 8 rows" in text
    assert "  3: 200 x 150, flipped" in text
    for bucket in found.store.layout.buckets:
        assert f"| {bucket.name} | {bucket.priors:,} | {bucket.rows} | {bucket.rows} |" in text
    classes = ", ".join(found.store.fingerprint["data"]["classes"])
    assert f"\n  data:\n    classes: {classes}\n" in text
    assert re.search(r"\n  teacher:\n    weights: [0-9a-f]{64}\n", text)
    assert "positives, of all of the 96 complete views" in text


def test_sizes_are_those_of_the_files(labelled) -> None:
    path = labelled.paths.labels
    found = summarise(path)
    for name, size in found.sizes.items():
        files = [f for f in path.glob(f"buckets/*/{name}/c/**/*") if f.is_file()]
        assert size.stored == sum(file.stat().st_size for file in files)
    views = [
        found.store.layout.buckets[bucket].priors for bucket in found.store.layout.table["bucket"]
    ]
    assert found.sizes["assigned_gt"].dense == 2 * sum(views)
    assert found.sizes["cls_scores"].dense == 4 * 10 * sum(views)
    assert found.total == sum(f.stat().st_size for f in path.rglob("*") if f.is_file())


def test_positives_are_counted(labelled) -> None:
    store = LabelStore(labelled.paths.labels)
    rows = [store.assigned(view) for view in range(len(store))]
    found = summarise(labelled.paths.labels).positives
    assert found is not None
    assert found.views == len(store)
    assert found.priors == sum(len(row) for row in rows)
    assert found.per_object.sum() == sum((row != BACKGROUND).sum() for row in rows)
    assert found.without == sum((row == BACKGROUND).all() for row in rows)


def test_a_large_store_is_sampled(labelled, monkeypatch) -> None:
    monkeypatch.setattr("pipeline.inspection.store_info.SAMPLE", 10)
    assert "positives, of a random 10 of the 96 complete views" in describe(
        summarise(labelled.paths.labels)
    )


def test_an_incomplete_store(incomplete) -> None:
    found = summarise(incomplete)
    assert sum(found.complete_views) == 88
    text = describe(found)
    assert "incomplete: 88 of 96 views in 11 of 12 shards of 8 rows; `lad labels`" in text
    assert "positives, of all of the 88 complete views" in text


def test_a_store_that_was_only_begun(empty) -> None:
    text = describe(summarise(empty))
    assert "incomplete: 0 of 96 views" in text
    assert "sizes: no shard is complete" in text
    assert "positives: no shard is complete" in text


def test_a_store_behind_a_url(labelled) -> None:
    text = describe(summarise(f"file://{labelled.paths.labels}"))
    assert "complete: 96 of 96 views" in text
    assert "sizes: counted for stores on a local disk only" in text


def test_no_store(tmp_path) -> None:
    with pytest.raises(UserError, match="there is no label store"):
        summarise(tmp_path / "nothing.zarr")


def test_the_command_takes_the_project_or_a_path(labelled, incomplete) -> None:
    from stages.store import command

    obj = (labelled.folder / "params.yaml", labelled.folder / "out")
    result = CliRunner().invoke(command, ["info"], obj=obj, catch_exceptions=False)
    assert "\ncomplete: 96" in result.output
    result = CliRunner().invoke(command, ["info", str(incomplete)], obj=obj, catch_exceptions=False)
    assert "\nincomplete: 88" in result.output
    obj = (incomplete.parents[1] / "params.yaml", incomplete.parent)
    result = CliRunner().invoke(command, ["info"], obj=obj, catch_exceptions=False)
    assert "\nincomplete: 88" in result.output


def test_the_documented_ways_to_read_a_store_agree(labelled) -> None:
    """Runs the Python of docs/store.md."""
    text = (ROOT / "docs/store.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 3
    store = LabelStore(labelled.paths.labels)
    for block in blocks:
        names: dict[str, object] = {}
        exec(block.replace('"out/labels.zarr"', repr(str(labelled.paths.labels))), names)
        np.testing.assert_array_equal(names["assigned"], store.assigned(5))
        np.testing.assert_array_equal(names["codes"], store.soft(5).codes)
