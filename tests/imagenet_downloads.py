"""ImageNet's three archives in small, with the digits' images."""

import io
import tarfile
from pathlib import Path

import numpy as np

from data.prepare import devkit

# ILSVRC2012's numbers are 1, 2, 3: not the sorted order
SYNSETS = {"0": "n00000002", "1": "n00000001", "2": "n00000003"}
NUMBERS = {"0": 1, "1": 2, "2": 3}


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name != ".lock"
    }


def expected(digits: Path, split: str) -> dict[str, bytes]:
    return content(digits / split)


def add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


def write_devkit(path: Path, digits: Path, year: int = 2012) -> None:
    from scipy.io import savemat

    fields = [
        "ILSVRC2012_ID",
        "WNID",
        "words",
        "gloss",
        "num_children",
        "children",
        "wordnet_height",
        "num_train_images",
    ]
    rows = [(NUMBERS[name], SYNSETS[name], f"{name}, digit {name}", "a digit", 0, [], 0, 20) for name in SYNSETS]
    rows.append((4, "n00000000", "digit", "all of them", 3, [1, 2, 3], 1, 0))
    synsets = np.array(
        [tuple(np.asarray(v) if isinstance(v, list) else v for v in r) for r in rows],
        dtype=[(f, object) for f in fields],
    )
    meta = io.BytesIO()
    savemat(meta, {"synsets": synsets.reshape(-1, 1)})
    truth = "".join(f"{NUMBERS[key.split('/')[0]]}\n" for key in val_order(digits))
    with tarfile.open(path, "w:gz") as archive:
        add(archive, f"ILSVRC{year}_devkit_t12/data/ILSVRC{year}_validation_ground_truth.txt", truth.encode())
        add(archive, f"ILSVRC{year}_devkit_t12/data/meta.mat", meta.getvalue())


def val_order(digits: Path) -> list[str]:
    """The digits as if drawn at random, as ImageNet's validation images are numbered."""
    return sorted(expected(digits, "val"), key=lambda key: (key[-5:], key))


def class_tar(digits: Path, name: str) -> bytes:
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w") as archive:
        for path in sorted((digits / "train" / name).iterdir()):
            add(archive, f"{SYNSETS[name]}_{path.stem}.JPEG", path.read_bytes())
    return inner.getvalue()


def write_downloads(root: Path, digits: Path) -> Path:
    """ImageNet's three archives in small, with the digits' images."""
    root.mkdir()
    with tarfile.open(root / "ILSVRC2012_img_train.tar", "w") as archive:
        for name in SYNSETS:
            add(archive, f"{SYNSETS[name]}.tar", class_tar(digits, name))
    with tarfile.open(root / "ILSVRC2012_img_val.tar", "w") as archive:
        for number, key in enumerate(val_order(digits), 1):
            add(archive, f"ILSVRC2012_val_{number:08d}.JPEG", (digits / "val" / key).read_bytes())
    write_devkit(root / devkit.NAME, digits)
    return root
