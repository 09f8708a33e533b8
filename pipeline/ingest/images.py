"""The entry `images` of an annotation file, beside the files that it names."""

import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from pipeline.data.coco import Record
from pipeline.ingest.decoded_images import DecodedImages
from pipeline.ingest.image_files import ImageFile, read_image_files
from pipeline.ingest.image_names import ImageNames
from pipeline.ingest.problems import Problem, Problems
from pipeline.ingest.values import Values, shown


@dataclass(frozen=True)
class CheckedImages:
    """The images without a problem.

    Attributes:
        records: `id`, `file_name`, `width` and `height` of each, in file order.
        known: the ids of all images, also of those with a problem.
        sha256s: of their files.
        digest: sha256 over the sorted (file name, sha256 of the file).
        notes: what else there is to say of them, a line each.
    """

    records: list[Record]
    known: set[int]
    sha256s: set[str]
    digest: str
    notes: list[str]


def check_images(
    records: list[Record],
    folder: Path,
    decoded: DecodedImages,
    values: Values,
    found: Problems,
) -> CheckedImages:
    """Check that each image has an id of its own and a file of the size that it says.

    Args:
        records: of the annotation file.
        folder: that file names start from.
        decoded: remembers what is in files.
        values: reads numbers.
        found: collects the problems.
    """
    ids = [values.whole(record, "id") for record in records]
    times = Counter(ids)
    files = _read_files(records, folder, decoded)
    kept: list[Record] = []
    used: list[ImageFile] = []
    without_size = 0
    for record, id_, file in zip(records, ids, files, strict=True):
        where = f"image {record.get('id')!r}"
        if id_ is None:
            found.add(
                Problem("image id is not an integer of 64 bits", shown(record.get("id"))), where
            )
        elif times[id_] > 1:
            # All of them go: nothing says which of them the annotations belong to.
            found.add(Problem("image id stands twice"), where)
        elif isinstance(file, Problem):
            found.add(file, where)
        elif problem := _size_problem(record, file, values):
            found.add(problem, where)
        else:
            width, height = file.size
            kept.append({"id": id_, "file_name": file.name, "width": width, "height": height})
            used.append(file)
            without_size += record.get("width") is None or record.get("height") is None
    digests = sorted({(file.name, file.sha256) for file in used})
    return CheckedImages(
        records=kept,
        known={id_ for id_ in ids if id_ is not None},
        sha256s={file.sha256 for file in used},
        digest=hashlib.sha256(json.dumps(digests).encode()).hexdigest(),
        notes=_notes(used, without_size),
    )


def _read_files(
    records: list[Record], folder: Path, decoded: DecodedImages
) -> list[ImageFile | Problem]:
    """The file of each image; one that several name is read once."""
    names = ImageNames(folder)
    paths: dict[str, str | Problem] = {}
    for record in records:
        name = record.get("file_name")
        if isinstance(name, str) and name not in paths:
            paths[name] = names.find(name)
    there = sorted({path for path in paths.values() if isinstance(path, str)})
    files = read_image_files(folder, there, decoded)
    found: list[ImageFile | Problem] = []
    for record in records:
        name = record.get("file_name")
        if not isinstance(name, str):
            found.append(Problem("image without a file_name", "" if name is None else shown(name)))
        else:
            path = paths[name]
            found.append(path if isinstance(path, Problem) else files[path])
    return found


def _size_problem(record: Record, file: ImageFile, values: Values) -> Problem | None:
    """Whether an image says another size than its file has; it may say none."""
    said = {key: record.get(key) for key in ("width", "height")}
    read = [None if said[key] is None else values.whole(record, key) for key in said]
    wrong = [
        value is not None and number != size
        for value, number, size in zip(said.values(), read, file.size, strict=True)
    ]
    if not any(wrong):
        return None
    width, height = file.size
    text = f"{file.name} is {width} x {height} pixels, annotated as "
    if None in [number for number, value in zip(read, said.values(), strict=True) if value]:
        text += " x ".join(map(shown, said.values()))
    else:
        text += " x ".join(map(str, said.values()))
    if read == [height, width]:
        text += (
            "; EXIF turns this file by a quarter, and the annotation is of the file as it was "
            "before: save it turned, or annotate it as it is shown"
            if file.decoded.turned
            else "; width and height are swapped, as for a file that EXIF has turned"
        )
    return Problem("image size differs from its file", text)


def _notes(files: list[ImageFile], without_size: int) -> list[str]:
    turned = sum(file.decoded.turned for file in files)
    shared = sum(count - 1 for count in Counter(file.name for file in files).values())
    lines = {
        f"{turned} images are turned or mirrored as their EXIF data ask": turned,
        f"{shared} images have the file of another image, under an id of their own": shared,
        f"{without_size} images say no width or height, which their files do": without_size,
    }
    return [line for line, count in lines.items() if count]
