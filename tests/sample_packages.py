"""Annotated photographs that packages bring along: fetched when a test asks for them, never committed.

deepforest (MIT) has four aerial pictures with 951 boxes in its wheel. labelme's annotated samples (GPL) are in Debian's package
labelme-examples: PyPI's wheels and sdists of labelme (looked at: 3.3.1, 3.16.7, 4.5.13, 5.4.1, 6.3.1) hold none.
"""

import json
import subprocess
import sys
import xml.etree.ElementTree as ET
import zipfile
from pathlib import Path
from typing import Any, Iterator

import pytest
from PIL import Image

from coco_files import write_annotations

DEEPFOREST = "deepforest==2.1.0"
LABELME = "labelme-examples"
SIDE = 400  # px of a tile, as deepforest trains on
Boxes = dict[str, list[tuple[str, list[float]]]]  # by picture: a class, and x, y, width, height


def fetched(command: list[str], folder: Path) -> None:
    """Runs a package manager in a folder; the test is skipped where it has no way to the package."""
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=120)
    except (OSError, subprocess.SubprocessError) as error:
        output = getattr(error, "stderr", None) or str(error)
        pytest.skip(f"{command[-1]} cannot be fetched: {str(output).strip().splitlines()[-1]}")


def fetched_wheel(folder: Path, package: str) -> Path:
    """A package's wheel from PyPI."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--retries", "1"]
    fetched([*pip, "--timeout", "15", "--no-deps", "--only-binary", ":all:", package], folder)
    (wheel,) = folder.glob("*.whl")
    return wheel


def fetch_deepforest(folder: Path) -> Path:
    """The folder of the pictures and of a file with the boxes of each."""
    wheel = fetched_wheel(folder, DEEPFOREST)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder, [name for name in archive.namelist() if name.startswith("deepforest/data/")])
    return folder / "deepforest/data"


def fetch_labelme(folder: Path) -> Path:
    """The folder of labelme's examples."""
    options = ["-o", "Acquire::Retries=1", "-o", "Acquire::http::Timeout=15"]
    fetched(["apt-get", *options, "download", LABELME], folder)
    (package,) = folder.glob("*.deb")
    subprocess.run(["dpkg-deb", "-x", package.name, "."], cwd=folder, check=True)
    return folder / "usr/share/doc/labelme-examples/examples"


def boxes_of_deepforest(samples: Path) -> Boxes:
    """What its XML files, as VOC has them, say."""
    found: Boxes = {}
    for path in sorted(samples.glob("*.xml")):
        root = ET.parse(path).getroot()
        boxes = found.setdefault(root.findtext("filename", ""), [])
        for one in root.iter("object"):
            left, top, right, bottom = (
                float(one.findtext(f"bndbox/{side}", "")) for side in ("xmin", "ymin", "xmax", "ymax")
            )
            boxes.append((one.findtext("name", ""), [left, top, right - left, bottom - top]))
    return found


def write_deepforest(samples: Path, root: Path) -> Path:
    """The pictures as the split `train` of a set in COCO's layout, and cut to tiles as the split `val`."""
    pictures = boxes_of_deepforest(samples)
    (root / "train").symlink_to(samples)
    (root / "val").mkdir()
    tiles: Boxes = {}
    for name, boxes in pictures.items():
        with Image.open(samples / name) as picture:
            for number, (tile, inside) in enumerate(tiles_of(picture, boxes)):
                tile_name = f"{Path(name).stem}_{number}.png"
                tile.save(root / "val" / tile_name, compress_level=1)
                tiles[tile_name] = inside
    for split, content in (("train", pictures), ("val", tiles)):
        write_annotations(root, split, coco_of_boxes(root / split, content))
    return root


def tiles_of(picture: Image.Image, boxes: list[tuple[str, list[float]]]) -> Iterator[tuple[Image.Image, list]]:
    """Parts of a picture and the boxes whose middle they hold, cut at the edge."""
    for top in range(0, picture.height, SIDE):
        for left in range(0, picture.width, SIDE):
            width, height = min(SIDE, picture.width - left), min(SIDE, picture.height - top)
            inside = []
            for name, (x, y, w, h) in boxes:
                if 0 <= x + w / 2 - left < width and 0 <= y + h / 2 - top < height:
                    x1, y1 = max(x - left, 0), max(y - top, 0)
                    x2, y2 = min(x + w - left, width), min(y + h - top, height)
                    inside.append((name, [x1, y1, x2 - x1, y2 - y1]))
            yield picture.crop((left, top, left + width, top + height)), inside


def coco_of_boxes(folder: Path, pictures: Boxes) -> dict[str, Any]:
    objects = [(number, name, {"bbox": box}) for number, boxes in enumerate(pictures.values()) for name, box in boxes]
    return coco_content(folder, list(pictures), objects)


def write_labelme(examples: Path, root: Path) -> Path:
    """The samples of instances: their polygons as the split `train`, what labelme itself makes of them as `val`."""
    samples, made = (examples / "instance_segmentation" / name for name in ("data_annotated", "data_dataset_coco"))
    (root / "train").symlink_to(samples)
    (root / "val").symlink_to(made)
    write_annotations(root, "train", coco_of_polygons(samples))
    write_annotations(root, "val", json.loads((made / "annotations.json").read_text()))
    return root


def coco_of_polygons(samples: Path) -> dict[str, Any]:
    """Polygons of one label and group are one object; what is to be ignored is none."""
    names, objects = [], []
    for number, path in enumerate(sorted(samples.glob("*.json"))):
        content = json.loads(path.read_text())
        names.append(content["imagePath"])
        parts: dict[Any, list[list[float]]] = {}
        for place, shape in enumerate(content["shapes"]):
            if shape["label"] != "__ignore__":
                group = place if shape["group_id"] is None else f"group {shape['group_id']}"
                points = [float(value) for point in shape["points"] for value in point]
                parts.setdefault((shape["label"], group), []).append(points)
        objects += [(number, name, polygons_as_object(polygons)) for (name, _), polygons in parts.items()]
    return coco_content(samples, names, objects)


def polygons_as_object(polygons: list[list[float]]) -> dict[str, Any]:
    xs, ys = ([value for polygon in polygons for value in polygon[axis::2]] for axis in (0, 1))
    return {"bbox": [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)], "segmentation": polygons}


def coco_content(folder: Path, names: list[str], objects: list[tuple[int, str, dict[str, Any]]]) -> dict[str, Any]:
    """What an annotation file holds: objects are an image's place among the names, a class and the rest."""
    images = []
    for number, name in enumerate(names):
        with Image.open(folder / name) as image:
            images.append({"id": number, "file_name": name, "width": image.width, "height": image.height})
    classes = sorted({name for _, name, _ in objects})
    annotations = [
        {"id": place, "image_id": number, "category_id": classes.index(name), "iscrowd": 0, **rest}
        for place, (number, name, rest) in enumerate(objects)
    ]
    categories = [{"id": number, "name": name} for number, name in enumerate(classes)]
    return {"images": images, "annotations": annotations, "categories": categories}


def write_masks(examples: Path, root: Path) -> Path:
    """The samples of classes with their label PNGs, in VOC's layout and in that of `masks`, and classes.txt."""
    made = examples / "semantic_segmentation/data_dataset_voc"
    for images, masks in (("JPEGImages", "SegmentationClass"), ("images/train", "annotations/train")):
        for place, folder in ((images, "JPEGImages"), (masks, "SegmentationClassPNG")):
            (root / place).parent.mkdir(exist_ok=True)
            (root / place).symlink_to(made / folder)
    names = sorted(path.stem for path in (made / "JPEGImages").iterdir())
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    (root / "ImageSets/Segmentation/train.txt").write_text("\n".join(names))
    (root / "classes.txt").write_text((made / "class_names.txt").read_text())
    return root
