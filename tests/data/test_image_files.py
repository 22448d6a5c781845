"""One rule for what an image is: the same files in folders, archives, conversions and predictions, and the others are said."""

import json
import subprocess
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import prepare_data
from conftest import run
from data import decode
from data.image_files import IMAGE_SUFFIXES, is_hidden_or_tool, is_image
from data.sources import open_source
from data.sources.image_paths import find_images
from utils.errors import DataError

WRITTEN = {  # suffix: Pillow's format
    ".jpg": "JPEG", ".JPEG": "JPEG", ".jpe": "JPEG", ".jfif": "JPEG", ".png": "PNG", ".apng": "PNG", ".webp": "WEBP", ".gif": "GIF",
    ".bmp": "BMP", ".dib": "BMP", ".ppm": "PPM", ".pgm": "PPM", ".pbm": "PPM", ".pnm": "PPM", ".tif": "TIFF", ".tiff": "TIFF",
    **({".avif": "AVIF"} if decode.HAS_AVIF else {}),
}  # fmt: skip
OTHERS = [
    "a/no_suffix",
    "a/readme.txt",
    "a/._0.jpg",
    "a/.hidden.png",
    "a/Thumbs.db",
    "labels.csv",
    "a/.ipynb_checkpoints/0.jpg",
]
TOOLS = [
    ".ipynb_checkpoints",
    "@eaDir",
    "__MACOSX",
    ".git",
    "$RECYCLE.BIN",
    "System Volume Information",
    "lost+found",
    "#recycle",
]


def picture(path: Path, kind: str, colour: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 40), (colour, 80, 120)).save(path, kind)


@pytest.fixture
def mixed(tmp_path) -> Path:
    """train and val of two classes with a file of each suffix, and much else in val."""
    root = tmp_path / "mixed"
    for split in ("train", "val"):
        for label, name in enumerate("ab"):
            for number, (suffix, kind) in enumerate(WRITTEN.items()):
                picture(root / split / name / f"{number:02d}{suffix}", kind, 100 * label + 5 * number)
    for name in OTHERS:
        picture(root / "val" / name, "PNG", 9)
    for name in TOOLS:
        picture(root / "val" / name / "0.jpg", "JPEG", 9)
        picture(root / "val" / "b" / name / "0.jpg", "JPEG", 9)
    return root


def wanted(root: Path, split: str = "val") -> list[str]:
    return [f"{name}/{number:02d}{suffix}" for name in "ab" for number, suffix in enumerate(WRITTEN)]


def test_the_rule_has_every_suffix_of_what_is_read():
    Image.init()
    readable = {suffix for suffix, kind in Image.registered_extensions().items() if kind in (*decode.FORMATS, "MPO")}
    assert readable - {".pfm"} <= set(IMAGE_SUFFIXES)  # whose pixels are floating-point numbers, which are refused
    assert all(suffix == suffix.lower() for suffix in IMAGE_SUFFIXES)
    assert is_image("a/B.JPeG") and is_image("000.mask.png") and is_image("n01/x.0.webp")
    assert not any(map(is_image, [*OTHERS, "jpg", "a.jpg.txt", "@eaDir/a.jpg", "x/__MACOSX/a.jpg", "a.jpg~", ""]))
    assert all(map(is_hidden_or_tool, TOOLS)) and not any(
        map(is_hidden_or_tool, ["n01440764", "a.b", "found", "0", "recycle"])
    )


@pytest.mark.parametrize("kind", ["folder", "tar", "zip"])
def test_formats_have_the_same_images_and_say_what_they_leave_out(mixed, kind):
    folder = mixed / "val"
    if kind == "tar":
        with tarfile.open(mixed / "val.tar", "w") as archive:
            archive.add(folder, "val")
    if kind == "zip":
        with zipfile.ZipFile(mixed / "val.zip", "w") as archive:
            for path in sorted(folder.rglob("*")):
                archive.write(path, path.relative_to(folder))
    source = open_source(kind, "val", str(mixed))
    assert [source.key(index) for index in range(len(source))] == wanted(mixed) and source.classes == ["a", "b"]
    assert source.fingerprint == open_source("folder", "val", str(mixed)).fingerprint
    colours = [np.asarray(source.load(index)[0])[20, 20, 0] for index in range(len(source))]
    assert (
        np.abs(np.array(colours) - [100 * label + 5 * n for label in range(2) for n in range(len(WRITTEN))]).max() <= 6
    )
    lines = [note for note in source.notes if "left out" in note]
    # folders are one each in a folder, in an archive their files are; a folder of its own lies in a
    hidden = 2 * len(TOOLS)
    assert len(lines) == 1 and f": {len(OTHERS) + hidden} (such as " in lines[0]
    assert not open_source("folder", "train", str(mixed)).notes


def test_check_and_training_and_evaluation_say_it(mixed, write_config, capsys):
    path = write_config(DATA={"DATA_PATH": str(mixed)}, TRAIN={"EPOCHS": 1, "WARMUP_EPOCHS": 0})
    count = f": {len(OTHERS) + 2 * len(TOOLS)} (such as "
    for argv in (["--check"], [], ["--eval", "--resume", path.parent / "output/fat_tiny/default/best.pth"]):
        run("--cfg", path, *argv)
        lines = [line for line in capsys.readouterr().out.splitlines() if "left out" in line]
        assert len(lines) == 1 and count in lines[0] and str(mixed / "val") in lines[0], (argv, lines)


@pytest.mark.parametrize("command", ["zip", "tar"])
def test_prepare_data_takes_them_and_says_what_it_leaves_out(mixed, tmp_path, capsys, command):
    output = tmp_path / command
    argv = [command, str(mixed), "--output", str(output), "--verify", "--workers", "0"]
    assert prepare_data.main(argv) == 0
    said = capsys.readouterr().out
    assert (
        said.count("left out") == 1 and f": {len(OTHERS) + 2 * len(TOOLS)} (such as " in said and "is a whole" in said
    )
    source = open_source(command, "val", str(output))
    assert [source.key(index) for index in range(len(source))] == wanted(mixed) and not source.notes
    assert prepare_data.main(["verify", str(mixed), "--workers", "0", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (
        report["splits"]["val"]["images"] == len(wanted(mixed))
        and len(report["notes"]) == 1
        and "left out" in report["notes"][0]
    )


def test_predictions_take_the_same_from_a_folder(mixed):
    found = find_images([str(mixed / "val")])
    assert [str(Path(path).relative_to(mixed / "val")) for path in found.paths] == wanted(mixed)
    assert not found.problems and len(found.notes) == 1 and "left out" in found.notes[0]
    named = str(mixed / "val" / "a" / "no_suffix")
    assert find_images([named]).paths == [named]  # what is named is taken, whatever it is called


def test_a_class_whose_files_are_no_images(mixed, tmp_path):
    picture(mixed / "train" / "c" / "photo", "PNG", 1)
    with pytest.raises(DataError, match="'c'.*left out.*1 .*c/photo.*DATA.CLASS_MAP"):
        open_source("folder", "train", str(mixed))
    with tarfile.open(mixed / "train.tar", "w") as archive:
        archive.add(mixed / "train", ".")
    with pytest.raises(DataError, match="'c'.*left out.*1 .*c/photo.*DATA.CLASS_MAP"):
        open_source("tar", "train", str(mixed))


def test_avif_that_pillow_does_not_read_is_named(tmp_path, monkeypatch):
    path = tmp_path / "a.avif"
    path.write_bytes(b"\0\0\0\x1cftypavif\0\0\0\0" + bytes(20))
    monkeypatch.setattr(decode, "HAS_AVIF", False)
    monkeypatch.setattr(decode, "FORMATS", tuple(name for name in decode.FORMATS if name != "AVIF"))
    with open(path, "rb") as file, pytest.raises(ValueError, match="AVIF.*pillow>=11.3"):
        decode.decode_image(file)


def test_zip_by_the_command_itself(mixed):
    if subprocess.run(["which", "zip"], capture_output=True).returncode:
        pytest.skip("no zip command on this machine")
    subprocess.run(["zip", "-qr", "val.zip", "val"], cwd=mixed, check=True)
    source = open_source("zip", "val", str(mixed))
    assert [source.key(index) for index in range(len(source))] == wanted(mixed)
