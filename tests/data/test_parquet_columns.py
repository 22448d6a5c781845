"""Parquet files of other tools: images as raw bytes or paths, classes by name; the labels are those of class folders."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import prepare_data
from conftest import error_of, load, run
from data.class_order import timm_order
from data.sources import Opening, open_source
from utils.errors import ConfigError, DataError

NAMES = [str(number) for number in range(11)] + ["Zebra", "apple"]


@pytest.fixture(scope="module", autouse=True)
def hub_cache(tmp_path_factory):
    """`datasets` keeps its copies there."""
    import datasets

    datasets.config.HF_DATASETS_CACHE = Path(tmp_path_factory.mktemp("hub"))
    datasets.disable_progress_bars()


def png(colour: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (colour, 0, 0)).save(file, "PNG")
    return file.getvalue()


def write(root: Path, images, labels, split: str = "val", names=("image", "label")) -> Path:
    (root / "data").mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(dict(zip(names, (images, labels)))), root / f"data/{split}-0.parquet")
    return root


def opened(root: Path, split: str = "val", num_classes: int = 0, **more):
    return open_source("hfds", split, str(root), opening=Opening(num_classes=num_classes, **more))


def reds(source) -> list[int]:
    return [int(np.asarray(source.load(index)[0])[0, 0, 0]) for index in range(len(source))]


def labels(source) -> list[int]:
    return [source.load(index)[1] for index in range(len(source))]


IMAGES = {
    "binary": lambda data: pa.array(data, pa.binary()),
    "large_binary": lambda data: pa.array(data, pa.large_binary()),
    "struct": lambda data: [{"bytes": cell, "path": None} for cell in data],
    "struct of bytes": lambda data: [{"bytes": cell} for cell in data],
    "paths": lambda data: pa.array([f"images/{number}.png" for number in range(len(data))]),
    "large paths": lambda data: pa.array([f"images/{number}.png" for number in range(len(data))], pa.large_string()),
}
LABELS = {
    "string": lambda names: pa.array(names),
    "large_string": lambda names: pa.array(names, pa.large_string()),
    "dictionary": lambda names: pa.array(names).dictionary_encode(),
    "bytes": lambda names: pa.array([name.encode() for name in names]),
}


@pytest.mark.parametrize("kind", IMAGES)
def test_images_as_they_are_stored(tmp_path, kind):
    data = [png(number) for number in range(4)]
    (tmp_path / "images").mkdir()
    for number, cell in enumerate(data):
        (tmp_path / f"images/{number}.png").write_bytes(cell)
    source = opened(write(tmp_path, IMAGES[kind](data), [2, 0, 1, 2]), num_classes=3)
    assert reds(source) == [0, 1, 2, 3] and labels(source) == [2, 0, 1, 2] and source.classes == ["0", "1", "2"]
    expected = [f"{label}/{number}{'.png' * ('paths' in kind)}" for number, label in enumerate([2, 0, 1, 2])]
    assert [source.key(index) for index in range(4)] == expected


@pytest.mark.parametrize("kind", LABELS)
def test_names_are_numbered_as_folders_are(tmp_path, kind):
    """Digits too: '10' comes before '2', as with class folders, unless DATA.CLASS_ORDER or a class map says otherwise."""
    names = NAMES[::-1] * 2
    root = write(tmp_path / "named", [png(number) for number in range(len(names))], LABELS[kind](names))
    for name in NAMES:
        (tmp_path / "folders/val" / name).mkdir(parents=True)
        (tmp_path / "folders/val" / name / "0.png").write_bytes(png(0))
    for order in ("torchvision", "timm"):
        source = opened(root, class_order=order)
        assert (
            source.classes
            == open_source("folder", "val", str(tmp_path / "folders"), opening=Opening(class_order=order)).classes
        )
        assert labels(source) == [source.classes.index(name) for name in names] and reds(source) == list(
            range(len(names))
        )
        assert source.notes == [f"{root}: its classes are the names in the column 'label'"]
    assert source.classes == timm_order(NAMES)
    mapped = opened(root, class_to_idx={"Zebra": 0, "unseen": 1, "3": 2})
    assert (
        mapped.classes == ["Zebra", "unseen", "3"] and labels(mapped) == [0, 2, 0, 2] and reds(mapped) == [1, 9, 14, 22]
    )


def test_tables_beside_folders_of_images(tmp_path):
    """`datasets` reads the folders alone."""
    (tmp_path / "val/a").mkdir(parents=True)
    (tmp_path / "val/a/0.png").write_bytes(png(7))
    root = write(tmp_path, [png(1), png(2)], ["x", "y"])
    with pytest.raises(
        DataError, match="no column 'label', but image; .*: its folders of images are read, not val-0.parquet"
    ):
        opened(root)


def test_truth_values_are_two_classes(tmp_path):
    source = opened(write(tmp_path, [png(1), png(2)], [True, True]))
    assert source.classes == ["False", "True"] and labels(source) == [1, 1]


def test_labels_that_a_class_map_does_not_name_are_said(tmp_path):
    write(tmp_path, [png(10), png(20), png(30)], ["cat", "dog", "cow"])
    source = opened(tmp_path, class_to_idx={"dog": 0, "hen": 1, "cat": 2})
    assert labels(source) == [2, 0] and source.classes == ["dog", "hen", "cat"]
    said = "left out labels that the class map does not name: 1 (such as 'cow'); no label has the name of 1 classes"
    assert [said in note for note in source.notes].count(True) == 1


def test_wordnet_ids_are_imagenet_s(tmp_path):
    source = opened(write(tmp_path, [png(1), png(2)], ["n01443537", "n01440764"]))
    assert source.classes == ["n01440764", "n01443537"] and labels(source) == [1, 0]
    assert [source.key(0), source.key(1)] == ["n01443537/0", "n01440764/1"]


@pytest.mark.parametrize("column", [
    pa.array(["a", None, "b", None]), pa.array(["a", "", "b", ""]), pa.array([0, None, 1, None]), pa.array([True, None, False, None]),
])  # fmt: skip
def test_a_row_without_a_label_is_named(tmp_path, column):
    root = write(tmp_path, [png(1)] * 4, column)
    with pytest.raises(
        DataError, match=r"'val': 2 of 4 rows have no label in the column 'label', such as row 1 .*DATA.COLUMNS"
    ):
        opened(root, num_classes=2)


@pytest.mark.parametrize("column", [[[0], [1]], [0.5, 1.0], [b"\xff", b"a"]])
def test_a_column_that_holds_no_labels(tmp_path, column):
    with pytest.raises(DataError, match="the column 'label' holds no numbers or names; name another in DATA.COLUMNS"):
        opened(write(tmp_path, [png(1)] * 2, column), num_classes=2)


def test_columns_that_hold_no_images(tmp_path):
    with pytest.raises(DataError, match="the column 'image' holds no image files"):
        opened(write(tmp_path / "a", [1, 2], ["a", "b"]))
    with pytest.raises(
        DataError, match="has no column 'image', but jpg, cls; name its images and labels in DATA.COLUMNS"
    ):
        opened(write(tmp_path / "b", [png(1)], ["a"], names=("jpg", "cls")))
    assert labels(opened(tmp_path / "b", columns=("jpg", "cls"))) == [0]
    source = opened(write(tmp_path / "c", ["gone.png"], ["a"]))
    with pytest.raises(DataError, match="a/gone.png: cannot be read as an image .*no file in"):
        source.load(0)


def test_numbers_need_their_count(tmp_path):
    root = write(tmp_path, [png(1)] * 2, pa.array([0, 3], pa.uint8()))
    with pytest.raises(ConfigError, match="MODEL.NUM_CLASSES"):
        opened(root)
    with pytest.raises(DataError, match="labels from 0 to 3, of 3 classes"):
        opened(root, num_classes=3)
    assert labels(opened(root, num_classes=4)) == [0, 3]


@pytest.fixture
def by_name(tmp_path, digits) -> Path:
    """The digits as raw bytes and class names."""
    for split in ("train", "val"):
        files = sorted((digits / split).rglob("*.png"))
        write(tmp_path / "named", [file.read_bytes() for file in files], [file.parent.name for file in files], split)
    return tmp_path / "named"


def test_training_and_evaluation_as_of_folders(write_config, tmp_path, by_name, digits, capsys):
    files = {"DATASET": "hfds", "DATA_PATH": str(by_name)}
    short = {"EPOCHS": 1, "WARMUP_EPOCHS": 0}
    run("--cfg", write_config(TRAIN=short, DATA=files), "--tag", "hfds")
    assert capsys.readouterr().out.count(f"{by_name}: its classes are the names in the column 'label'") == 1
    run("--cfg", write_config(TRAIN=short), "--tag", "folder")
    ours, theirs = (load(tmp_path / f"output/fat_tiny/{tag}/last.pth") for tag in ("hfds", "folder"))
    assert ours["classes"] == theirs["classes"] == ["0", "1", "2"]
    assert all(torch.equal(value, theirs["model"][key]) for key, value in ours["model"].items())
    for tag, data in (("hfds", files), ("folder", {})):
        run(
            "--cfg",
            write_config(DATA=data),
            "--tag",
            tag,
            "--eval",
            "--resume",
            tmp_path / "output/fat_tiny/hfds/last.pth",
        )
    first, second = (
        json.loads((tmp_path / f"output/fat_tiny/{tag}/eval.json").read_text()) for tag in ("hfds", "folder")
    )
    assert first["raw"] == second["raw"] and first["num_images"] == 29


def test_a_class_that_a_split_lacks_shifts_no_label(write_config, tmp_path, by_name):
    """As with class folders: refused by its name, and taken with a class map."""
    table = pq.read_table(by_name / "data/val-0.parquet")
    kept = table.filter(pa.compute.not_equal(table["label"], "1"))
    pq.write_table(kept, by_name / "data/val-0.parquet")
    config = write_config(TRAIN={"EPOCHS": 1, "WARMUP_EPOCHS": 0}, DATA={"DATASET": "hfds", "DATA_PATH": str(by_name)})
    said = str(error_of("--cfg", config))
    assert "only in train: 1;" in said and "DATA.CLASS_MAP" in said
    (tmp_path / "names.txt").write_text("0\n1\n2\n")
    run("--cfg", config, "--opts", "DATA.CLASS_MAP", tmp_path / "names.txt")
    best = tmp_path / "output/fat_tiny/default/best.pth"
    assert load(best)["classes"] == ["0", "1", "2"]
    said = str(error_of("--cfg", config, "--eval", "--resume", best))
    assert "only in train: 1;" in said and "DATA.CLASS_MAP" in said
    run("--cfg", config, "--eval", "--resume", best, "--opts", "DATA.CLASS_MAP", tmp_path / "names.txt")
    assert json.loads((best.parent / "eval.json").read_text())["num_images"] == 19
    source = opened(by_name, class_to_idx={"0": 0, "1": 1, "2": 2})
    assert labels(source) == [0] * 10 + [2] * 9


def test_verify_reads_them_too(tmp_path, by_name, digits, capsys):
    root = tmp_path / "verified"
    shutil.copytree(by_name, root)
    (root / "data/val-0.parquet").rename(root / "data/validation-0.parquet")
    assert prepare_data.main(["verify", str(root), "--workers", "0", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["format"] == "parquet" and report["splits"]["val"]["classes"] == {"0": 10, "1": 10, "2": 9}
    files = sorted((digits / "train").rglob("*.png"))
    assert report["splits"]["train"]["images"] == 60 and report["splits"]["train"]["bytes"] == sum(
        file.stat().st_size for file in files
    )
    write(root, pa.array(["../secret.png", "b.png"]), pa.array([None, "a"]), "validation")
    (root / "b.png").write_bytes(png(3))
    assert prepare_data.main(["verify", str(root), "--workers", "0"]) == 1
    said = capsys.readouterr().out
    assert "row 0: cannot be read" in said and "has no label" in said and "val: 1 images" in said
