"""Layouts that users have and that are not quite ours: taken where nothing is to be guessed, else a line that names the way out."""

import shutil
import tarfile
import zipfile

import pytest

from conftest import error_of, run
from data.sources import Opening, open_source
from data.sources.archive import leading_folders
from data.sources.folder import FolderSource
from utils.errors import DataError


@pytest.fixture
def data(tmp_path, digits):
    return shutil.copytree(digits, tmp_path / "data")


def files_of(root):
    return [path for path in sorted(root.rglob("*")) if path.is_file()]


def message(write_config, root, *options, command="--check"):
    return str(error_of("--cfg", write_config(DATA={"DATA_PATH": str(root)}), command, *options))


def test_a_flat_split(write_config, data):
    for path in files_of(data / "val"):
        path.rename(data / "val" / f"{path.parent.name}_{path.name}")
    for name in "012":
        (data / "val" / name).rmdir()
    said = message(write_config, data)
    assert (
        f"{data / 'val'}: holds 29 images" in said
        and "no class' folder" in said
        and "DATA.VAL_SPLIT" in said
        and "prepare_data.py" in said
    )


def test_a_split_in_one_folder(write_config, data):
    (data / "val" / "images").mkdir()
    for path in files_of(data / "val"):
        path.rename(data / "val" / "images" / f"{path.parent.name}_{path.name}")
    for name in "012":
        (data / "val" / name).rmdir()
    said = message(write_config, data)
    assert (
        "only in train: 0, 1, 2" in said
        and "only in val: images" in said
        and "DATA.CLASS_MAP" in said
        and "DATA.VAL_SPLIT" in said
    )


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("kind", ["missing", "empty"])
def test_a_class_without_images_is_named_and_a_class_map_takes_it(write_config, data, tmp_path, capsys, split, kind):
    shutil.rmtree(data / split / "1")
    if kind == "empty":
        (data / split / "1").mkdir()
    for options in ((), ("--opts", "MODEL.NUM_CLASSES", "3")):
        said = message(write_config, data, *options)
        assert (
            split in said
            and "DATA.CLASS_MAP" in said
            and any(
                part in said
                for part in (
                    ["folder '1'"] if kind == "empty" else ["only in train: 1;", "only in val: 1)", "lacks 1)"]
                )
            )
        )
    (tmp_path / "names.txt").write_text("0\n1\n2\n")
    run("--cfg", write_config(DATA={"DATA_PATH": str(data), "CLASS_MAP": str(tmp_path / "names.txt")}), "--check")
    assert "3 classes" in capsys.readouterr().out


def test_number_of_classes_of_imagenet(write_config, data):
    for split in ("train", "val"):
        for name, synset in zip("012", ("n01440764", "n01443537", "n01484850")):
            (data / split / name).rename(data / split / synset)
    said = message(write_config, data, "--opts", "MODEL.NUM_CLASSES", "1000")
    assert "train has 3 classes" in said and "ImageNet it lacks n01491361, n01494475, n01496331 and 994 more" in said


def test_a_class_too_many(write_config, data):
    shutil.copytree(data / "train" / "2", data / "train" / "spare")
    said = message(write_config, data, "--opts", "MODEL.NUM_CLASSES", "3")
    assert "train has 4 classes (compared with val it has besides spare)" in said


@pytest.mark.parametrize("prefix", ["", "val/", "data/imagenet/val/", "imagenet_val/"])
@pytest.mark.parametrize("kind", ["tar", "zip", "zip with a map", "zip with a map of the same"])
def test_leading_folders_of_an_archive(data, kind, prefix):
    files = files_of(data / "val")
    keys = [str(path.relative_to(data / "val")) for path in files]
    if kind == "tar":
        with tarfile.open(data / "val.tar", "w") as archive:
            archive.add(data / "val", prefix or ".")
    else:
        with zipfile.ZipFile(data / "val.zip", "w") as archive:
            parts = prefix.split("/")[:-1]
            for depth in range(len(parts)):  # `zip -r` has an entry for each folder
                archive.writestr("/".join(parts[: depth + 1]) + "/", "")
            for path, key in zip(files, keys):
                archive.write(path, prefix + key)
    if "map" in kind:
        inside = prefix if "same" in kind else ""
        (data / "val_map.txt").write_text("".join(f"{inside}{key}\t{key[0]}\n" for key in keys))
    source, folder = open_source(kind.split()[0], "val", str(data)), open_source("folder", "val", str(data))
    assert source.classes == ["0", "1", "2"] and source.fingerprint == folder.fingerprint
    for index in (0, 10, 28):
        image, label = source.load(index)
        expected, right = folder.load(index)
        assert label == right and image.tobytes() == expected.tobytes() and source.key(index) == folder.key(index)


@pytest.mark.parametrize("names, class_to_idx, prefix", [
    (["a/1.jpg", "b/1.jpg"], None, ""),
    (["a/1.jpg", "a/2.jpg"], None, ""),  # one class
    (["val/a/1.jpg", "val/a/2.jpg"], None, "val/"),
    (["val/1.jpg", "val/2.jpg"], None, "val/"),  # of a flat split, so that it is called that
    (["x/val/a/val/1.jpg", "x/val/a/val/2.jpg"], None, "x/val/"),
    (["x/a/1.jpg", "x/b/c/1.jpg"], None, "x/"),
    (["x/a/1.jpg", "x/2.jpg"], None, ""),
    (["a/x/1.jpg", "a/y/2.jpg"], None, "a/"),
    (["a/x/1.jpg", "a/y/2.jpg"], {"a": 0, "b": 1}, ""),  # a class by the map
    (["ab/1.jpg", "abc/1.jpg"], None, ""),
    (["1.jpg"], None, ""),
    ([], None, ""),
])  # fmt: skip
def test_where_the_classes_begin(names, class_to_idx, prefix):
    assert leading_folders(names, "val", class_to_idx) == prefix


def test_a_flat_archive(data):
    with zipfile.ZipFile(data / "val.zip", "w") as archive:
        for path in files_of(data / "val"):
            archive.write(path, f"val/{path.parent.name}_{path.name}")
    with pytest.raises(DataError, match="val.zip: .* lies in no class' folder.*val_map.txt"):
        open_source("zip", "val", str(data))


def test_a_zip_without_a_map_says_so(write_config, data, capsys):
    for split in ("train", "val"):
        with zipfile.ZipFile(data / f"{split}.zip", "w") as archive:
            for path in files_of(data / split):
                archive.write(path, path.relative_to(data))
    run("--cfg", write_config(DATA={"DATA_PATH": str(data), "DATASET": "zip"}), "--check")
    said = capsys.readouterr().out
    assert said.count("val_map.txt: no such file; the classes are the folders") == 1 and "3 classes" in said


COMPOSED, DECOMPOSED = "\u00c4", "A\u0308"  # both are shown as a capital A with two dots


def layouts_of(root):
    """The same images as folders, tar and zip."""
    files = files_of(root / "val")
    with tarfile.open(root / "val.tar", "w") as tar, zipfile.ZipFile(root / "val.zip", "w") as packed:
        for path in files:
            key = str(path.relative_to(root / "val"))
            tar.add(path, key)
            packed.write(path, key)
    return ["folder", "tar", "zip"]


def test_folders_that_a_class_map_does_not_name_are_said(data):
    for kind in layouts_of(data):
        source = open_source(kind, "val", str(data), opening=Opening(class_to_idx={"2": 0, "none": 1, "0": 2}))
        assert {source.key(index).split("/")[0] for index in range(len(source))} == {"0", "2"}
        said = "left out folders that the class map does not name: 1 (such as '1'); no folder has the name of 1 classes"
        assert [said in note for note in source.notes].count(True) == 1, kind


@pytest.mark.parametrize("folder, named", [(DECOMPOSED, COMPOSED), (COMPOSED, DECOMPOSED), ("1 ", "1")])
def test_a_class_map_s_name_that_only_looks_like_a_folder_s(data, folder, named):
    (data / "val" / "1").rename(data / "val" / folder)
    for kind in layouts_of(data):
        with pytest.raises(DataError, match="look the same and are not") as caught:
            open_source(kind, "val", str(data), opening=Opening(class_to_idx={"0": 0, named: 1, "2": 2}))
        assert ascii(folder) in str(caught.value) and ascii(named) in str(caught.value)


def test_classes_of_training_and_validation_that_only_look_the_same(write_config, data):
    (data / "train" / "1").rename(data / "train" / COMPOSED)
    (data / "val" / "1").rename(data / "val" / DECOMPOSED)
    assert "'\\xc4' and 'A\\u0308' look the same and are not" in message(write_config, data)


@pytest.mark.parametrize("with_map", [False, True])
def test_a_zip_of_windows(data, with_map):
    plain = FolderSource(data / "val")
    with zipfile.ZipFile(data / "val.zip", "w") as packed:
        packed.writestr(renamed("val\\"), b"")
        for path in files_of(data / "val"):
            packed.writestr(renamed(str(path.relative_to(data)).replace("/", "\\")), path.read_bytes())
    if with_map:
        lines = [f"{plain.key(index)}\t{plain.labels[index]}\n" for index in range(len(plain))]
        (data / "val_map.txt").write_text("".join(lines))
    source = open_source("zip", "val", str(data))
    assert [(source.key(i), source.load(i)[1]) for i in range(len(source))] == [
        (plain.key(i), plain.load(i)[1]) for i in range(len(plain))
    ]
    assert any("as of Windows" in note for note in source.notes)


def renamed(name):
    """A zip's entry of that name as it is: Python on Windows would put '/' for its own separator."""
    info = zipfile.ZipInfo("x")
    info.filename = name
    return info


@pytest.mark.parametrize(
    "split, file", [("val", "val.tar.gz"), ("val", "val.tgz"), ("val.tar.gz", "val.tar.gz"), ("val.tgz", "val.tgz")]
)
def test_a_compressed_tar_is_named(data, split, file):
    with tarfile.open(data / file, "w:gz") as archive:
        archive.add(data / "val", "val")
    with pytest.raises(DataError, match=f"{file}: is compressed .*unpack it to a plain .tar"):
        open_source("tar", split, str(data))
