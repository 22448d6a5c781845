"""Labels from a list: each way of writing one, what is understood of it, and what is refused, with its line."""

import json
import re

import pytest
import torch
from PIL import Image

from conftest import Stop, assert_same_run, error_of, launch, run, stop_at_update
from data.sources import Opening, open_source
from data.sources.lists import Listing
from utils.errors import DataError

CSV = "path,label,split\ncat/1.png,cat,train\ndog/2.png,dog,train\ncat/3.png,cat,val\n"


@pytest.fixture
def place(tmp_path):
    """A folder with pictures of cats, dogs and what the tests name; a function that writes a list there."""
    for number, name in enumerate(["cat/1", "dog/2", "cat/3", "dog/a, b", "my pets/4 5", "deep/cat/1"]):
        path = tmp_path / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(path)

    def write(text, name="list.csv"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def opened(path, split="train", listing=Listing(), **more):
    return open_source("list", split, str(path), opening=Opening(listing=listing, **more))


def content(source):
    """Key and class of each image, which its pixels must be able to give."""
    labels = [source.load(index)[1] for index in range(len(source))]
    return {source.key(index): source.classes[label] for index, label in enumerate(labels)}


def refused(*args, **more):
    with pytest.raises(DataError) as caught:
        opened(*args, **more)
    text = str(caught.value)
    assert "\n" not in text
    return text


# How a list is written


WAYS = {
    "list.csv": CSV,
    "excel.csv": "\ufeffPath;Class;Set\r\ncat/1.png;cat;Training\r\ndog/2.png;dog;train\r\n\r\ncat/3.png;cat;valid\r\n",
    "list.tsv": "label\tsplit\tfilename\ncat\ttrain\tcat/1.png\ndog\ttrain\tdog/2.png\ncat\tval\tcat/3.png\n",
    "list.jsonl": "".join(
        json.dumps({"image": path, "label": label, "split": split, "width": 8}) + "\n"
        for path, label, split in [
            ("cat/1.png", "cat", "train"),
            ("dog/2.png", "dog", "train"),
            ("cat/3.png", "cat", "val"),
        ]
    ),
    "windows.csv": CSV.replace("/", "\\").replace("\n", "\r\n"),
    "classes.csv": "# classes: cat, dog\n" + CSV,
}


@pytest.mark.parametrize("name", WAYS)
def test_a_list_with_splits(place, name):
    path = place(WAYS[name], name)
    assert content(opened(path)) == {"cat/1.png": "cat", "dog/2.png": "dog"}
    validation = opened(path, "val")
    assert content(validation) == {"cat/3.png": "cat"} and validation.classes == ["cat", "dog"]
    assert opened(path.parent, "val", Listing(name)).fingerprint == validation.fingerprint
    assert len(opened(path, "all")) == 3


def test_caffe_s_lines_one_list_for_each_split(place):
    place("# from Caffe\ncat/1.png 0\nmy pets/4 5.png 1\n\ndog/2.png\t2\n", "train.txt")
    folder = place("cat/3.png 0\n", "val.txt").parent
    training, validation = opened(folder), opened(folder, "val")
    assert training.classes == validation.classes == ["0", "1", "2"]  # of the training images' list
    assert content(training) == {"0/cat/1.png": "0", "1/my pets/4 5.png": "1", "2/dog/2.png": "2"}
    assert opened(folder, "val.txt").fingerprint == validation.fingerprint


def test_quoted_commas_spaces_and_other_columns(place):
    path = place('id,picture,animal\n7,"dog/a, b.png", big dog \n8, my pets/4 5.png,cat\n')
    source = opened(path, "all", columns=["picture", "animal"])
    assert content(source) == {"big dog/dog/a, b.png": "big dog", "cat/my pets/4 5.png": "cat"}


def test_paths_are_relative_to_the_list_or_to_the_data_path_or_absolute(place):
    path = place("path,label\ncat/1.png,cat\ndog/2.png,dog\n", "lists/all.csv")
    folder = path.parent.parent
    source = opened(folder, "all", Listing("lists/all.csv"))
    assert source.name(0) == str(folder / "cat/1.png") and len(content(source)) == 2
    path = place(f"path,label\n{folder}/cat/1.png,cat\n{folder}/deep/cat/1.png,cat\n", "lists/absolute.csv")
    assert len(set(content(opened(path, "all")))) == 2  # cat/1.png both, so with their whole paths


# Labels


@pytest.mark.parametrize("labels, classes, said", [
    (["10", "2", "1"], ["1", "2", "10"], "order of their numbers, 1 to 10"),
    (["10", "2", "007"], ["007", "10", "2"], "'007' is 0"),
    (["dog", "Zebra", "cat"], ["Zebra", "cat", "dog"], "sorted (DATA.CLASS_ORDER torchvision): 'Zebra' is 0"),
])  # fmt: skip
def test_the_order_of_classes_is_said(place, labels, classes, said):
    rows = zip(("cat/1.png", "dog/2.png", "cat/3.png"), labels)
    source = opened(place("path,label\n" + "".join(f"{path},{label}\n" for path, label in rows)), "all")
    assert source.classes == classes and list(content(source).values()) == labels
    assert said in source.notes[-1]


def test_timm_s_order_a_first_line_and_a_class_map(place):
    text = "path,label\ncat/1.png,img10\ndog/2.png,img2\n"
    assert opened(place(text), "all", class_order="timm").classes == ["img2", "img10"]
    source = opened(place('# classes: img2, "a, b", img10\n' + text), "all", class_order="timm")
    assert source.classes == ["img2", "a, b", "img10"] and "first line" in source.notes[-1]
    source = opened(place(text), "all", class_to_idx={"img2": 0, "img10": 1, "more": 2})
    assert source.classes == ["img2", "img10", "more"] and "DATA.CLASS_MAP" in source.notes[-1]
    source = opened(place(text), "all", class_to_idx={"img2": 0})  # some classes only, as in other formats
    assert len(source) == 1 and any("'img10' in line 2" in note for note in source.notes)


def test_numbers_stand_for_the_names_of_a_map(place):
    source = opened(place("# classes: cat, dog\ncat/1.png 0\ndog/2.png 1\n", "list.txt"), "all")
    assert content(source) == {"cat/1.png": "cat", "dog/2.png": "dog"}
    names = place('{"classes": ["dog", "cat"]}\n{"path": "cat/1.png", "label": 1}\n', "list.jsonl")
    assert content(opened(names, "all")) == {"cat/1.png": "cat"}


def test_an_image_that_is_named_again_counts_once(place):
    source = opened(place(CSV + "./cat/1.png,cat,train\n"))
    assert len(source) == 2
    assert any("left out: 1 (such as './cat/1.png' in the lines 2 and 5)" in note for note in source.notes)


# What is refused


@pytest.mark.parametrize("text, line, said", [
    (CSV + "cat/9.png,cat,train\ncat/8.png,cat,train\n", 5, "'cat/9.png' is no file in"),
    (CSV + "cat/1.png,cat,val\n", 5, "is in 'val', and by line 2 in 'train'"),
    (CSV + "cat/1.png,dog,train\n", 5, "has the label 'dog', but by line 2 'cat'"),
    ("# classes: cat, cow\n" + CSV, 4, "'dog' is none of the 2 classes"),
    (CSV + "dog/2.png,,train\n", 5, "has no label for 'dog/2.png'"),
    (CSV + ",dog,train\n", 5, "has no path"),
    (CSV + "deep/cat/1.png,cat\n", 5, "has no split for 'deep/cat/1.png'"),
    (CSV.partition("\n")[2], 1, "is an image, 'cat/1.png', where the names of the columns should stand"),
    (CSV.replace("label", "animal"), 1, "has no column 'label' among 'path', 'animal', 'split'"),
    (CSV + "dog/a, b.png,dog,train\n", 5, "has 4 cells, but the header 3"),
    (CSV + '"dog/a, b.png"x,dog,train\n', 5, "is no line of a table"),
    ("# classes: cat, dog, cat\n" + CSV, 1, "names the class 'cat' twice"),
])  # fmt: skip
def test_bad_tables(place, text, line, said):
    path = place(text)
    message = refused(path)
    assert message.startswith(f"{path}: line {line}: ") and said in message and ";" in message


@pytest.mark.parametrize("name, text, line, said", [
    ("a.txt", "cat/1.png\n", 1, "has no label after 'cat/1.png'"),
    ("a.txt", "my pets/4 5.png\n", 1, "has no label"),
    ("a.txt", "path,label\ncat/1.png,cat\n", 1, "called .csv or .tsv"),
    ("a.jsonl", '{"path": "cat/1.png", "label": "cat"}\n{"path": "dog/2.png"}\n', 2, "has no label for 'dog/2.png'"),
    ("a.jsonl", '{"label": "cat"}\n', 1, "has no 'path', but 'label'"),
    ("a.jsonl", '{"path": "cat/1.png", "label": ["cat", "dog"]}\n', 1, "is not a label"),
    ("a.jsonl", "cat/1.png cat\n", 1, "is no JSON"),
])  # fmt: skip
def test_bad_lines(place, name, text, line, said):
    path = place(text, name)
    message = refused(path, "all")
    assert message.startswith(f"{path}: line {line}: ") and said in message


def test_an_unknown_label_of_a_validation_image(place):
    path = place(CSV + "dog/a.png,dgo,val\n")
    assert opened(path).classes == ["cat", "dog"]
    assert refused(path, "val").startswith(f"{path}: line 5: 'dgo' is none of the 2 classes")


def test_the_lists_of_two_splits_are_apart(place):
    place("cat/1.png cat\ndog/2.png dog\n", "train.txt")
    path = place("cat/3.png cat\ncat/1.png cat\n", "val.txt")
    assert refused(path.parent, "val").startswith(f"{path}: line 2: 'cat/1.png' is named by train.txt in line 1, too")


def test_lists_that_do_not_say_enough(place):
    path = place("path,label\ncat/1.png,cat\n")
    assert "DATA.VAL_SHARE" in refused(path) and "does not say which images are 'train'" in refused(path)
    assert "has no image of the split 'test', but of 'train', 'val'" in refused(place(CSV), "test")
    assert "names no image" in refused(place("path,label\n"), "all")
    assert "; name the list (list.csv) in DATA.LIST, " in refused(path.parent)
    assert "; name the list in DATA.LIST, " in refused(path.parent / "cat")
    assert "no such file" in refused(path.parent / "none.csv") and "UTF-8" in refused(place(b"path,label\n\xff,a\n"))
    assert "--data-path" in refused("")


def test_a_missing_file_is_skipped_where_unreadable_images_are(place):
    source = opened(place(CSV + "cat/9.png,cat,train\n"), listing=Listing(may_miss=True))
    assert len(source) == 3
    with pytest.raises(DataError, match=r"cat/9\.png: .*list\.csv, or set DATA\.ON_ERROR skip"):
        source.load(2)


# Runs


@pytest.fixture
def listed(digits, tmp_path, write_config):
    """A config of the digits' folders as a list, in the folders' order."""
    files = [(path, path.parts[-3]) for split in ("train", "val") for path in sorted((digits / split).glob("*/*"))]
    rows = [f"{path.relative_to(digits)},{path.parent.name},{split}\n" for path, split in files]
    path = tmp_path / "digits.csv"
    path.write_text("path,label,split\n" + "".join(rows))
    data = {"DATASET": "list", "DATA_PATH": str(digits), "LIST": str(path)}
    return write_config("listed.yaml", DATA=data, TRAIN={"EPOCHS": 1, "WARMUP_EPOCHS": 0, "SAVE_EVERY_STEPS": 2})


def test_a_run_on_a_list_is_that_on_folders_and_goes_on_to_the_same_bits(
    listed, write_config, tmp_path, monkeypatch, capsys
):
    output = tmp_path / "output" / "fat_tiny"
    run("--cfg", listed, "--tag", "list")
    assert re.search(
        r"digits\.csv: its 3 classes are its labels in the order of their numbers, 0 to 2", capsys.readouterr().out
    )
    folders = write_config("folders.yaml", TRAIN={"EPOCHS": 1, "WARMUP_EPOCHS": 0, "SAVE_EVERY_STEPS": 2})
    run("--cfg", folders, "--tag", "folders")
    weights = [torch.load(output / tag / "last.pth", weights_only=True)["model"] for tag in ("list", "folders")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    stop = stop_at_update(monkeypatch, 5)
    with pytest.raises(Stop):
        run("--cfg", listed, "--tag", "resumed")
    stop()
    run("--cfg", listed, "--tag", "resumed")
    assert_same_run(output / "list", output / "resumed")
    launch(2, "--cfg", listed, "--tag", "eval", "--eval", "--resume", output / "list" / "last.pth")
    run("--cfg", listed, "--tag", "alone", "--eval", "--resume", output / "list" / "last.pth")
    figures = [json.loads((output / tag / "eval.json").read_text())["raw"] for tag in ("eval", "alone")]
    assert figures[0]["num_images"] == 29 and figures[0]["acc1"] == figures[1]["acc1"]
    last = json.loads((output / "list" / "metrics.jsonl").read_text().splitlines()[-1])
    assert figures[0]["acc1"] == last["raw"]["acc1"]


def test_a_bad_list_ends_the_run_with_one_line(listed):
    path = listed.with_name("digits.csv")
    path.write_text(path.read_text() + "train/0/none.png,0,train\n")
    error = error_of("--cfg", listed)
    assert error.status == 2 and str(error).startswith(f"{path}: line 91: 'train/0/none.png' is no file in ")
    run("--cfg", listed, "--check", "--opts", "DATA.ON_ERROR", "skip")
