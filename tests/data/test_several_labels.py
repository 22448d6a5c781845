"""Images with several labels, or none: as lists, shards and parquet have them, divided by DATA.VAL_SHARE, and what is refused."""

import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data.label_sets import LabelCells, LabelSets
from data.sources import Opening, open_source
from data.sources.lists import Listing
from data.sources.val_share import ValShare, write_split
from utils.errors import ConfigError, DataError

LABELS = [["cat", "dog"], ["dog"], [], ["cat"]]  # of the images 0.png to 3.png


def png(number: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (number, 0, 0)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module", autouse=True)
def hub_cache(tmp_path_factory):
    """`datasets` keeps its copies there."""
    import datasets

    datasets.config.HF_DATASETS_CACHE = Path(tmp_path_factory.mktemp("hub"))


@pytest.fixture
def place(tmp_path):
    """A folder with four images; a function that writes a list there."""
    for number in range(4):
        (tmp_path / f"{number}.png").write_bytes(png(number))

    def write(text, name="list.csv"):
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


def opened(path, dataset="list", split="all", separator="", **more):
    return open_source(dataset, split, str(path), opening=Opening(cells=LabelCells(separator), **more))


def content(source):
    """The labels by the image's number, which its pixels give; targets are 0 and 1 of each class."""
    each = {}
    for index in range(len(source)):
        image, target = source.load(index)
        assert target.dtype == np.uint8 and target.shape == (len(source.classes),)
        each[np.asarray(image)[0, 0, 0].item()] = [source.classes[label] for label in np.flatnonzero(target)]
    return each


def refused(*args, error=DataError, **more):
    with pytest.raises(error) as caught:
        opened(*args, **more)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Lists

WAYS = {
    "list.csv": "path,labels\n0.png,dog|cat\n1.png,dog\n2.png,\n3.png,cat\n",
    "semicolons.tsv": "Tags\tpath\ndog; cat\t0.png\ndog;dog\t1.png\n\t2.png\ncat;\t3.png\n",
    "list.jsonl": "".join(json.dumps({"path": f"{n}.png", "labels": labels}) + "\n" for n, labels in enumerate(LABELS)),
    "cells.jsonl": '{"path": "0.png", "label": "cat|dog"}\n{"path": "1.png", "label": "dog"}\n{"path": "2.png"}\n'
    '{"path": "3.png", "label": "cat"}\n',
    "numbers.csv": "# classes: cat, dog\npath,labels\n0.png,1|0\n1.png,1\n2.png,\n3.png,0\n",
}


@pytest.mark.parametrize("name", WAYS)
def test_ways_to_write_several_labels(place, name):
    source = opened(place(WAYS[name], name))
    assert source.classes == ["cat", "dog"] and content(source) == dict(enumerate(LABELS))
    assert "its 2 classes are" in source.notes[-1] and source.key(0) == "0.png"


def test_the_separator_is_said_or_given(place):
    source = opened(place(WAYS["semicolons.tsv"], "a.tsv"))
    assert any("labels of an image are separated by ';' (DATA.LABEL_SEPARATOR)" in note for note in source.notes)
    source = opened(place("path,labels\n0.png,a|b c;d\n1.png,\n", "b.csv"), separator=" ")
    assert source.classes == ["a|b", "c;d"] and content(source) == {0: ["a|b", "c;d"], 1: []}
    assert content(opened(place("0.png cat|dog\n1.png dog\n", "c.txt"))) == {0: ["cat", "dog"], 1: ["dog"]}


def test_a_class_map_drops_labels_not_images(place):
    source = opened(place(WAYS["list.csv"]), class_to_idx={"cow": 0, "cat": 1})
    assert source.classes == ["cow", "cat"] and content(source) == {0: ["cat"], 1: [], 2: [], 3: ["cat"]}
    (note,) = [note for note in source.notes if "left out" in note]
    assert "left out labels that the class map does not name, not their images: 2 (such as 'dog' in line 2)" in note


def test_an_image_that_is_named_again_counts_once(place):
    source = opened(place(WAYS["list.csv"] + "./0.png,cat|dog\n"))
    assert len(source) == 4 and any("left out: 1 (such as './0.png' in the lines 2 and 6)" in n for n in source.notes)


@pytest.mark.parametrize("text, line, said", [
    ("path,labels\n0.png,a|b\n1.png,c;d\n", 3, "'c;d' has ';', but '|' separates labels; set DATA.LABEL_SEPARATOR"),
    ("path,labels\n0.png,a;b|c\n", 2, "has ';', but '|'"),
    ("path,labels\n0.png,a|b\n./0.png,b\n", 3, "has the label 'b', but by line 2 'a', 'b'"),
    ("path,labels\n9.png,a|b\n", 2, "is no file in"),
    ("# classes: a, b\npath,labels\n0.png,a|c\n", 3, "'c' is none of the 2 classes"),
    ("path;labels\n0.png;a;b\n", 2, "has 3 cells, but the header 2"),
    ("path,split\n0.png,train\n", 1, "has no column 'labels'"),
])  # fmt: skip
def test_bad_tables(place, text, line, said):
    path = place(text)
    message = refused(path)
    assert message.startswith(f"{path}: line {line}: ") and said in message


def test_other_bad_lists(place):
    assert "no training image has a label" in refused(place("path,labels\n0.png,\n"))
    assert "has a label without a name" in refused(place('{"path": "0.png", "labels": ["a", null]}\n', "a.jsonl"))
    assert "line 1: has no label after '0.png'" in refused(place("0.png\n", "a.txt"))


def test_a_task_of_one_label_points_to_the_other(place):
    for text, name in ((WAYS["list.csv"], "a.csv"), ('{"path": "0.png", "label": ["a"]}\n', "a.jsonl")):
        with pytest.raises(DataError, match="of images with several labels set TASK multilabel"):
            open_source("list", "all", str(place(text, name)))


# Shards


def shard(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path.parent


@pytest.mark.parametrize("suffix, written", [
    ("json", lambda labels: json.dumps({"labels": labels}).encode()),
    ("json", lambda labels: json.dumps({"label": [["cat", "dog"].index(name) for name in labels]}).encode()),
    ("cls", lambda labels: "|".join(labels).encode()),
    ("txt", lambda labels: " ; ".join(labels).encode()),
])  # fmt: skip
def test_several_labels_in_shards(tmp_path, suffix, written):
    members = [(f"{n}.{kind}", data) for n, labels in enumerate(LABELS) for kind, data in
               (("png", png(n)), (suffix, written(labels)))]  # fmt: skip
    source = opened(shard(tmp_path / "train-000000.tar", members), "wds", "train", class_to_idx={"cat": 0, "dog": 1})
    loaded = [source.load(stored) for stored in source.read(0)]
    found = [[source.classes[label] for label in np.flatnonzero(target)] for _, target in loaded]
    assert found == LABELS and loaded[0][1].dtype == np.uint8


@pytest.mark.parametrize("data, said", [
    (b"{}", "0: has no labels; an image without any has an empty .cls"),
    (b'{"labels": ["cow"]}', "has label 'cow', which is no number and none of the 2 classes"),
    (b'{"labels": [2]}', "has label 2, of 2 classes"),
    (b'{"labels": [["cat"]]}', "has no label"),
])  # fmt: skip
def test_bad_labels_in_shards(tmp_path, data, said):
    root = shard(tmp_path / "train-000000.tar", [("0.png", png(0)), ("0.json", data)])
    with pytest.raises(DataError, match=said):
        list(opened(root, "wds", "train", class_to_idx={"cat": 0, "dog": 1}).read(0))


# Parquet


def table(root: Path, labels, name: str = "labels") -> Path:
    (root / "data").mkdir(parents=True)
    pq.write_table(pa.table({"image": [png(n) for n in range(len(labels))], name: labels}), root / "data/val-0.parquet")
    return root


COLUMNS = {
    "lists": pa.array(LABELS), "missing": pa.array([*LABELS[:2], None, LABELS[3]]), "large": pa.array(LABELS, pa.large_list(pa.string())),
    "cells": pa.array(["cat|dog", "dog", None, "cat"]), "numbers": pa.array([[0, 1], [1], [], [0]]),
}  # fmt: skip


@pytest.mark.parametrize("kind", COLUMNS)
def test_several_labels_in_parquet(tmp_path, kind):
    root = table(tmp_path, COLUMNS[kind])
    known = {"class_to_idx": {"cat": 0, "dog": 1}} if kind == "numbers" else {}
    source = opened(root, "hfds", "val", **known)
    assert source.classes == ["cat", "dog"] and content(source) == dict(enumerate(LABELS))
    assert len({source.key(index) for index in range(4)}) == 4


def test_parquet_with_other_columns_maps_and_numbers(tmp_path):
    root = table(tmp_path / "a", COLUMNS["lists"], "tags")
    with pytest.raises(DataError, match="has no column 'label', but image, tags"):
        opened(root, "hfds", "val")
    source = opened(root, "hfds", "val", columns=("image", "tags"), class_to_idx={"dog": 0})
    assert content(source) == {0: ["dog"], 1: ["dog"], 2: [], 3: []}
    assert any("left out labels that the class map does not name: 1 (such as 'cat')" in note for note in source.notes)
    root = table(tmp_path / "b", COLUMNS["numbers"], "label")
    assert "MODEL.NUM_CLASSES" in refused(root, "hfds", "val", error=ConfigError)
    assert "labels from 0 to 1, of 1 classes" in refused(root, "hfds", "val", num_classes=1)
    with pytest.raises(DataError, match="holds no numbers or names.*or set TASK multilabel"):
        open_source("hfds", "val", str(root))


# DATA.VAL_SHARE


def shared(path, validation, seed=0, share=0.25):
    return opened(path, split="train", share=ValShare(share, seed, validation), listing=Listing(undivided=True))


def rows_of(tmp_path, sets):
    """A list of images of noise with these labels."""
    random = np.random.default_rng(0)
    for number in range(len(sets)):
        Image.fromarray(random.integers(0, 256, (4, 4, 3), dtype=np.uint8)).save(tmp_path / f"{number}.png")
    path = tmp_path / "list.csv"
    path.write_text("path,labels\n" + "".join(f"{n}.png,{'|'.join(labels)}\n" for n, labels in enumerate(sets)))
    return path


def test_a_share_is_drawn_by_the_rarest_label(tmp_path):
    """Of 24 images with dogs 4 have a bird, too, which is rarer: one of these, and a fourth of the others and of those without."""
    sets = [["bird", "dog"]] * 4 + [["dog"]] * 20 + [[]] * 8
    path = rows_of(tmp_path, sets)
    training, validation = shared(path, False), shared(path, True)
    keys = [{int(source.key(index)[:-4]) for index in range(len(source))} for source in (training, validation)]
    assert not keys[0] & keys[1] and keys[0] | keys[1] == set(range(32))
    assert [len(keys[1] & part) for part in (set(range(4)), set(range(4, 24)), set(range(24, 32)))] == [1, 5, 2]
    assert (
        "8 of 32 images are for validation, of each of 3 classes its share, drawn by the rarest label"
        in validation.notes[-1]
    )
    write_split(tmp_path / "split.csv", training, validation)
    again = [opened(tmp_path / "split.csv", split=split) for split in ("train", "val")]
    for source, listed in zip((training, validation), again):
        assert listed.classes == source.classes and len(listed) == len(source)
        assert all((source.load(i)[1] == listed.load(i)[1]).all() for i in range(len(source)))


def test_a_class_that_a_share_leaves_without_images(tmp_path):
    path = rows_of(tmp_path, [["dog"]] * 8 + [["dog", "emu"]])
    with pytest.raises(DataError) as caught:
        shared(path, True)
    assert str(caught.value).startswith(
        "DATA.VAL_SHARE is 0.25: it leaves the class 'emu', of 1 image, without validation"
    )
    assert f"({tmp_path / '8.png'}); add other images" in str(caught.value)
    path = rows_of(tmp_path, [["dog", "emu"]] * 2 + [["dog"]] * 8)
    shutil.copy(tmp_path / "0.png", tmp_path / "2.png")
    assert "warning: the same bytes have different labels: 0.png and 2.png" in "\n".join(shared(path, True).notes)


def test_the_rarest_of_several_labels():
    sets = LabelSets.of([[0, 1], [0], [], [1, 2], [0, 2]], 4)
    assert sets.images_per_class().tolist() == [3, 2, 2, 0] and sets.rarest().tolist() == [1, 0, -1, 1, 2]
    assert sets[np.array([4, 2])].of_image(0).tolist() == [0, 2]
