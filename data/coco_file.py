"""COCO's annotation files: read, checked, and sorted by image."""

import json
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterable

from utils.errors import DataError, one_line
from utils.files import require_no_device

Entry = dict[str, Any]  # as the file has it

REMEDY = "correct the file"


@dataclass(frozen=True)
class CocoFile:
    """What an annotation file says; ids are those of the file."""

    path: Path
    categories: list[Entry]  # by id
    images: list[Entry]  # by id
    objects: dict[int, list[Entry]]  # by the image's id, in the file's order; every image has an entry

    @property
    def names(self) -> list[str]:
        """The categories' names, in the order of their ids."""
        return [category["name"] for category in self.categories]


def read_coco_file(path: Path) -> CocoFile:
    """Reads a file with `images`, `annotations` and `categories`.

    Raises:
        DataError: it cannot be read, or something in it does not fit: a key that is missing, an id that stands twice, an
            annotation of an image or a category that the file does not have, a box that is none.
    """
    content = _read(path)
    lists = {key: _entries(content, key, path) for key in ("images", "annotations", "categories")}
    images = _by_id(lists["images"], "image", path)
    categories = _by_id(lists["categories"], "category", path)
    _by_id(lists["annotations"], "annotation", path)
    for image in images.values():
        _require_image(image, path)
    names = Counter(category.get("name") for category in categories.values())
    for name, count in names.items():
        if not isinstance(name, str) or not name or count > 1:
            reason = f"stands {count} times" if isinstance(name, str) and name else "is no name"
            raise DataError(str(path), f"the category name {name!r} {reason}", REMEDY)
    objects: dict[int, list[Entry]] = {number: [] for number in sorted(images)}
    for entry in lists["annotations"]:
        for key, known in (("image_id", images), ("category_id", categories)):
            if type(entry.get(key)) is not int or entry[key] not in known:
                what = f"annotation {entry['id']} names {key} {entry.get(key)!r}, which is not in the file"
                raise DataError(
                    str(path), what, f"add it, or remove the annotation{_more(lists['annotations'], key, known)}"
                )
        _require_box(entry, path)
        objects[entry["image_id"]].append(entry)
    return CocoFile(path, [categories[key] for key in sorted(categories)], [images[key] for key in objects], objects)


def _read(path: Path) -> Entry:
    try:
        require_no_device(path)
        content = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        remedy = "DATA.DATA_PATH (--data-path) must hold annotations/instances_<split>.json and <split>/*"
        raise DataError(str(path), "no such file", remedy) from error
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(str(path), f"cannot be read as JSON ({one_line(error, 120)})", "copy it again") from error
    if not isinstance(content, dict):
        raise DataError(
            str(path), f"holds a {type(content).__name__}, no annotations", "give an instances file of COCO's kind"
        )
    return content


def _entries(content: Entry, key: str, path: Path) -> list[Entry]:
    entries = content.get(key)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise DataError(str(path), f"has no list of {key}", "give an instances file of COCO's kind")
    if not entries and key != "annotations":
        raise DataError(str(path), f"its list of {key} is empty", REMEDY)
    return entries


def _by_id(entries: Iterable[Entry], what: str, path: Path) -> dict[int, Entry]:
    found: dict[int, Entry] = {}
    for entry in entries:
        number = entry.get("id")
        if type(number) is not int:
            raise DataError(str(path), f"the id {number!r} of an {what} is no whole number", REMEDY)
        if number in found:
            raise DataError(
                str(path), f"the id {number} stands at two entries of its kind ({what})", "give each one its own"
            )
        found[number] = entry
    return found


def _require_image(image: Entry, path: Path) -> None:
    name, sides = image.get("file_name"), [image.get("width"), image.get("height")]
    if not isinstance(name, str) or not name or name.startswith("/") or ".." in name.split("/"):
        raise DataError(
            str(path), f"image {image['id']} has the file_name {name!r}, no path below the split's folder", REMEDY
        )
    if not all(type(side) is int and side > 0 for side in sides):
        raise DataError(str(path), f"image {image['id']} ({name}) has width and height {sides}", "give both in px")


def _require_box(entry: Entry, path: Path) -> None:
    box = entry.get("bbox")
    good = isinstance(box, list) and len(box) == 4 and all(map(_is_number, box))
    if not good or not _is_number(entry.get("area", 0)):
        what = "bbox" if not good else "area"
        raise DataError(
            str(path),
            f"annotation {entry['id']} has the {what} {entry.get(what)!r}",
            "give finite numbers, a bbox as x, y, width, height",
        )


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _more(entries: list[Entry], key: str, known: dict[int, Entry]) -> str:
    count = sum(entry.get(key) not in known for entry in entries) - 1
    return f" ({count} more of the kind)" if count > 0 else ""
