"""A whole store becomes one that a killed teacher pass has left."""

import json
from pathlib import Path

from pipeline.project.digests import digest
from pipeline.store.reader import LabelStore
from pipeline.store.schema import SHARD_FLAGS, unfinished
from pipeline.store.writer import StoreWriter


def unfinish(store: Path, *missing: int) -> StoreWriter:
    """Have a store lie beside its name, with some shards to be written.

    Args:
        store: a whole one.
        *missing: places of the shards, bucket after bucket, that are not complete.
    """
    layout = LabelStore(store).layout
    change_attributes(store, finished=False, fallbacks=0)
    (store / SHARD_FLAGS).mkdir()
    for place, shard in enumerate(layout.shards()):
        if place not in missing:
            (store / SHARD_FLAGS / layout.shard_name(shard)).write_text("0")
    store.rename(unfinished(store))
    return StoreWriter(unfinished(store), layout)


def change_attributes(store: Path, **attributes: object) -> None:
    """Have a store say something else of itself, with the right digest."""
    file = store / "zarr.json"
    content = json.loads(file.read_text())
    changed = {n: v for n, v in content["attributes"].items() if n != "digest"} | attributes
    content["attributes"] = changed | {"digest": digest(changed)}
    file.write_text(json.dumps(content))
