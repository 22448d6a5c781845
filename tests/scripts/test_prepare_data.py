"""prepare_data.py: each format holds the folders' bytes, a killed conversion goes on to the same bytes, errors are one line."""

import gc
import io
import json
import os
import re
import resource
import shutil
import signal
import sys
import tarfile
import traceback
import zipfile
from pathlib import Path

import numpy as np
import pytest

import prepare_data
from conftest import rest
from data.prepare import archives, devkit, imagenet, images, preparation, read, shards, verify
from data.sources import open_source
from imagenet_downloads import (
    SYNSETS,
    add,
    class_tar,
    content,
    expected,
    val_order,
    write_devkit,
    write_downloads,
)
from utils.errors import ConfigError, DataError, OutputError, UserError

PACKED = ("zip", "tar", "shards", "parquet")
EXTRA = {"shards": ["--images-per-shard", 7], "parquet": []}


@pytest.fixture(autouse=True)
def no_sync(monkeypatch):
    """Which waits for all that the machine is writing."""
    monkeypatch.setattr(os, "sync", lambda: None)


def prepare(*argv) -> int:
    return prepare_data.main([str(arg) for arg in argv])


def refused(kind, *argv) -> str:
    with pytest.raises(kind) as caught:
        prepare(*argv)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def found(folder: Path, kind=None, **options) -> dict:
    return verify.verify(folder, kind, workers=0, **options)


@pytest.fixture(scope="module")
def packed(digits, tmp_path_factory):
    """The digits in each format, made without a break."""
    root = tmp_path_factory.mktemp("packed")
    for kind in PACKED:
        assert prepare(kind, digits, "--output", root / kind, *EXTRA.get(kind, [])) == 0
    return root


@pytest.fixture
def copy(digits, tmp_path):
    shutil.copytree(digits, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.fixture
def downloads(digits, tmp_path):
    return write_downloads(tmp_path / "downloads", digits)


def unpacked(digits: Path) -> dict[str, bytes]:
    """What the folders made of `downloads` must hold."""
    train = {
        f"train/{SYNSETS[key[0]]}/{SYNSETS[key[0]]}_{Path(key).stem}.JPEG": data
        for key, data in expected(digits, "train").items()
    }
    val = {
        f"val/{SYNSETS[key[0]]}/ILSVRC2012_val_{number:08d}.JPEG": expected(digits, "val")[key]
        for number, key in enumerate(val_order(digits), 1)
    }
    return train | val


# What the formats hold


def test_zip_is_swin_s_layout(digits, packed):
    for split in ("train", "val"):
        with zipfile.ZipFile(packed / f"zip/{split}.zip") as file:
            assert {m.compress_type for m in file.infolist()} == {zipfile.ZIP_STORED} and file.testzip() is None
            assert file.namelist() == sorted(expected(digits, split))
            assert {name: file.read(name) for name in file.namelist()} == expected(digits, split)
        lines = (packed / f"zip/{split}_map.txt").read_text().splitlines()
        assert lines == [f"{key}\t{int(key[0])}" for key in sorted(expected(digits, split))]


def test_tar_holds_the_files_in_order(digits, packed):
    for split in ("train", "val"):
        with tarfile.open(packed / f"tar/{split}.tar", "r:") as file:
            assert file.getnames() == sorted(expected(digits, split))
            assert {name: file.extractfile(name).read() for name in file.getnames()} == expected(digits, split)


def test_webdataset_reads_the_shards(digits, packed):
    import webdataset

    info = json.loads((packed / "shards/_info.json").read_text())
    assert info["classes"] == ["0", "1", "2"]
    order = {}
    for split in ("train", "val"):
        about = info["splits"][split]
        paths = [packed / "shards" / name for name in about["filenames"]]
        samples = list(webdataset.WebDataset([str(path) for path in paths], shardshuffle=False))
        assert about["num_samples"] == len(samples) == sum(about["shard_lengths"]) and max(about["shard_lengths"]) == 7
        assert about["shard_bytes"] == [path.stat().st_size for path in paths]
        read_back = {}
        for sample in samples:
            about = json.loads(sample["json"])
            assert int(sample["cls"]) == about["label"] == int(about["class"]) == int(about["key"][0])
            assert not {".", "/"} & set(sample["__key__"])
            read_back[about["key"]] = sample["png"]
        assert read_back == expected(digits, split)
        order[split] = list(read_back)
    assert order["val"] == sorted(order["val"]) and order["train"] != sorted(order["train"])


def test_timm_reads_the_shards(digits, packed):
    from PIL import Image
    from timm.data.readers.reader_wds import ReaderWds

    for split in ("train", "val"):
        reader = ReaderWds(str(packed / "shards"), split=split)
        samples = [(image.tobytes(), label) for image, label in reader]
        right = [
            (Image.open(digits / split / key).convert("RGB").tobytes(), int(key[0])) for key in expected(digits, split)
        ]
        assert len(reader) == len(samples) and sorted(samples) == sorted(right)


def test_datasets_reads_the_parquet_files(digits, packed, tmp_path):
    import datasets

    sets = datasets.load_dataset(str(packed / "parquet"), cache_dir=str(tmp_path))
    assert set(sets) == {"train", "validation"}
    for name, split in (("train", "train"), ("validation", "val")):
        features = sets[name].features
        assert features == datasets.Features(
            {"image": datasets.Image(), "label": datasets.ClassLabel(names=["0", "1", "2"])}
        )
        assert sets[name][0]["image"].size == (8, 8)
        rows = sets[name].cast_column("image", datasets.Image(decode=False))
        assert {row["image"]["path"]: row["image"]["bytes"] for row in rows} == expected(digits, split)
        assert all(row["label"] == int(row["image"]["path"][0]) for row in rows)


def test_folders_from_imagenet_s_archives(digits, downloads, tmp_path):
    assert prepare("folders", downloads, "--output", tmp_path / "out", "--partial", "--verify", "--workers", 0) == 0
    files = content(tmp_path / "out")
    assert files.pop(".prepare_folders.json") and files == unpacked(digits)


def test_the_devkit_says_what_torchvision_reads_in_it(digits, downloads, tmp_path, monkeypatch):
    import hashlib

    from torchvision.datasets import imagenet as reference

    checksum = hashlib.md5((downloads / devkit.NAME).read_bytes()).hexdigest()
    monkeypatch.setitem(reference.ARCHIVE_META, "devkit", (devkit.NAME, checksum))
    reference.parse_devkit_archive(downloads)
    truth = devkit.read_devkit(downloads / devkit.NAME)
    assert truth == reference.load_meta_file(downloads)[1] == [SYNSETS[key[0]] for key in val_order(digits)]


def test_one_hash_for_all_formats(digits, packed):
    reports = [found(digits), *(found(packed / kind) for kind in PACKED)]
    assert [report["format"] for report in reports] == ["folder", *PACKED]
    for report in reports:
        assert report["splits"] == reports[0]["splits"] and not report["problems"]
    train = reports[0]["splits"]["train"]
    assert train["images"] == 60 and train["classes"] == {"0": 20, "1": 20, "2": 20}
    assert train["bytes"] == sum(map(len, expected(digits, "train").values()))


def test_the_hash_sees_a_byte_a_name_and_a_label(copy):
    hashes = [found(copy)["splits"]["val"]["hash"]]
    victim = copy / "val/1" / sorted(os.listdir(copy / "val/1"))[0]
    victim.rename(victim.with_name("other.png"))
    hashes.append(found(copy)["splits"]["val"]["hash"])
    data = victim.with_name("other.png").read_bytes()
    victim.with_name("other.png").write_bytes(data + b"x")
    hashes.append(found(copy)["splits"]["val"]["hash"])
    (copy / "val/0").rename(copy / "val/3")  # the others' labels change
    hashes.append(found(copy)["splits"]["val"]["hash"])
    assert len(set(hashes)) == 4


def test_names_with_dots_and_spaces_and_twins(copy):
    """Names that would meet in a shard if its keys were the names, and long ones, which need tar's extensions."""
    original = sorted((copy / "train/1").iterdir())[0]
    for name in ("a.b.png", "a_b.png", "a.b.bmp", "a b.png", "é.PNG", "x" * 150 + ".png"):
        shutil.copy(original, original.with_name(name))
    (copy / "train/1").rename(copy / "train/v1.0")
    (copy / "val/1").rename(copy / "val/v1.0")
    right = found(copy)["splits"]
    for kind in PACKED:
        assert prepare(kind, copy, "--output", copy.with_name(kind), "--verify", "--workers", 0) == 0
        assert found(copy.with_name(kind))["splits"] == right
    names = []
    for path in copy.with_name("shards").glob("train-*.tar"):
        with tarfile.open(path) as file:
            names += file.getnames()
    assert len({name.split(".")[0] for name in names}) == 60 + 6


def test_jpegs_have_the_extension_that_timm_looks_for(copy):
    from timm.data.readers.reader_wds import ReaderWds

    for path in sorted((copy / "val").rglob("*.png")):
        path.rename(path.with_suffix(".JPEG"))
    prepare("shards", copy, "--output", copy.with_name("out"), "--splits", "val")
    with tarfile.open(copy.with_name("out") / "val-000000.tar") as file:
        assert {Path(name).suffix for name in file.getnames()} == {".jpg", ".cls", ".json"}
    assert (
        sorted(label for _, label in ReaderWds(str(copy.with_name("out")), split="val"))
        == [0] * 10 + [1] * 10 + [2] * 9
    )


def test_shards_depend_on_the_seed_and_are_no_larger_than_asked(digits, packed, tmp_path):
    prepare("shards", digits, "--output", tmp_path, "--images-per-shard", 7, "--seed", 1)
    assert (tmp_path / "train-000000.tar").read_bytes() != (packed / "shards/train-000000.tar").read_bytes()
    assert (tmp_path / "val-000000.tar").read_bytes() == (packed / "shards/val-000000.tar").read_bytes()
    sizes = np.array([400, 300, 300, 2000, 1, 2, 3])
    assert shards.plan(range(7), sizes, 1000, 2) == [[0, 1], [2], [3], [4, 5], [6]]
    assert shards.plan(range(7), sizes, 1000, 9) == [[0, 1, 2], [3], [4, 5, 6]]
    about = json.loads((packed / "shards/_info.json").read_text())["splits"]["train"]
    planned = shards._sizes(images.Images(digits, "train")).sum()
    # the estimate for room and --shard-size
    assert 0 <= sum(about["shard_bytes"]) - planned <= 10240 * len(about["filenames"])


# Killed and started again


def child(prepare_child, *argv) -> int:
    """The status of prepare_data.py in a forked process, which saves its imports."""
    return spoken(prepare_child, *argv)[0]


def spoken(prepare_child, *argv) -> tuple[int, str]:
    """The same, and all that it said: in a pipe, as a file could be what it may not write."""
    out, into = os.pipe()
    pid = os.fork()
    if not pid:
        status = 99
        try:
            sys.stdout = sys.stderr = os.fdopen(into, "w", buffering=1)
            sys.unraisablehook = sys.__unraisablehook__  # not pytest's, which keeps it
            prepare_child()
            status = prepare(*argv)
        except UserError as error:
            status = error.status
            print(f"error: {error}")
        except BaseException:
            traceback.print_exc()
        finally:
            gc.collect()  # what an archive left open has to say of it
            os._exit(status)
    os.close(into)
    with open(out) as file:
        text = file.read()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), text


class Events:
    """Counts the moments at which a conversion can be killed: each image, flush to disk and renaming; kills at one."""

    def __init__(self, kill_at: int = 0):
        self.kill_at, self.count = kill_at, 0

    def install(self, setattr=setattr) -> None:
        for where, name in (
            (preparation.Progress, "add"),
            (os, "fsync"),
            (os, "replace"),
            (os, "rename"),
            (os, "unlink"),
        ):
            setattr(where, name, self.counted(getattr(where, name)))

    def counted(self, original):
        def call(*args, **kwargs):
            self.count += 1
            if self.count == self.kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)

        return call


@pytest.mark.parametrize("kind", [rest("zip"), rest("tar"), "shards", rest("parquet"), rest("folders")])
def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(kind, digits, downloads, tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "STEP", 2000)
    monkeypatch.setattr(os, "fsync", lambda file: None)
    source, extra = (downloads, ["--partial"]) if kind == "folders" else (digits, EXTRA.get(kind, []))
    prepare(kind, source, "--output", tmp_path / "whole", *extra)
    whole = content(tmp_path / "whole")
    events = Events()
    with monkeypatch.context() as counting:
        events.install(counting.setattr)
        prepare(kind, source, "--output", tmp_path / "counted", *extra)
    total = events.count
    for moment in sorted({1, 2, 3, *range(20, total, total // 4), total - 2, total - 1, total}):
        out = tmp_path / str(moment)
        assert child(Events(moment).install, kind, source, "--output", out, *extra) == -signal.SIGKILL
        for path in out.rglob("*"):  # what has its name is whole, at any moment
            name = str(path.relative_to(out))
            if path.is_file() and name in whole and ".prepare" not in name:
                assert path.read_bytes() == whole[name], (moment, name)
        if moment % 2:  # killed once more
            child(Events(11).install, kind, source, "--output", out, *extra)
        assert child(lambda: None, kind, source, "--output", out, *extra) == 0
        assert content(out) == whole, moment


@pytest.mark.parametrize("kind, redone", [("zip", 20), ("tar", 20), ("shards", 7), ("folders", 20)])
def test_finished_work_is_not_redone(kind, redone, digits, downloads, tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "STEP", 2000)
    source, extra = (downloads, ["--partial"]) if kind == "folders" else (digits, EXTRA.get(kind, []))
    child(
        lambda: setattr(preparation.Progress, "add", Events(58).counted(preparation.Progress.add)),
        kind,
        source,
        "--output",
        tmp_path / "out",
        *extra,
    )
    written = []
    monkeypatch.setattr(preparation.Progress, "add", lambda self, size, images=1: written.append(size))
    prepare(kind, source, "--output", tmp_path / "out", *extra)
    assert 89 - 58 <= len(written) <= 89 - 57 + redone
    before = content(tmp_path / "out")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.*") if path.name != ".lock"}
    written.clear()
    assert prepare(kind, source, "--output", tmp_path / "out", *extra) == 0
    assert not written and content(tmp_path / "out") == before
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_what_is_said_to_be_done_is_on_the_disk(digits, downloads, tmp_path, monkeypatch):
    """An archive before the journal says so, a class' files and an archive before they have their names."""
    monkeypatch.setattr(archives, "STEP", 2000)
    done = []

    def rename(path, target):
        done.append("rename " + path.name)
        return path.replace(target)

    monkeypatch.setattr(os, "fsync", lambda file: done.append(os.path.basename(os.readlink(f"/proc/self/fd/{file}"))))
    monkeypatch.setattr(os, "sync", lambda: done.append("sync"))
    monkeypatch.setattr(Path, "rename", rename)  # Python 3.10 has taken os.rename before
    prepare("tar", digits, "--output", tmp_path / "tar", "--splits", "val")
    steps = [name for name in done if "val.tar" in name]
    assert len(steps) > 8 and steps[-2:] == ["val.tar.unfinished", "rename val.tar.unfinished"]
    assert steps[:-2] == ["val.tar.unfinished", "val.tar.journal"] * (len(steps) // 2 - 1)
    done.clear()
    prepare("folders", downloads, "--output", tmp_path / "folders", "--partial")
    steps = [name for name in done if name == "sync" or name.startswith("rename")]
    classes = [step for name in sorted(SYNSETS.values()) for step in ("sync", f"rename .{name}.tmp")]
    assert steps == [*classes, "rename train.unfinished", "sync", "rename val.unfinished"]


def test_a_journal_cut_short_or_without_its_archive(digits, tmp_path, packed, monkeypatch):
    monkeypatch.setattr(archives, "STEP", 2000)
    lines = [b"[]\n", b"\0\n", b'{"bytes": 100000000, "crcs": []}\n', b'{"bytes": 1, "crcs": []}\n', b'{"crcs": [1]}\n']
    for number, harm in enumerate(("journal", "archive", *lines)):
        out = tmp_path / str(number)
        child(
            lambda: setattr(preparation.Progress, "add", Events(40).counted(preparation.Progress.add)),
            "zip",
            digits,
            "--output",
            out,
        )
        journal = out / "train.zip.journal"
        assert len(journal.read_bytes().splitlines()) > 2
        if harm == "journal":
            journal.write_bytes(journal.read_bytes()[:-5])
        elif harm in lines:
            journal.write_bytes(b"".join([*journal.read_bytes().splitlines(keepends=True)[:-1], harm]))
        else:
            (out / "train.zip.unfinished").unlink()
        prepare("zip", digits, "--output", out)
        assert (out / "train.zip").read_bytes() == (packed / "zip/train.zip").read_bytes()


@pytest.mark.parametrize(
    "text", ["[]", "{}", '{"splits": null}', '{"splits": {"val": 3}, "classes": []}', "[" * 100000]
)
def test_verify_of_an_info_that_is_none(tmp_path, text):
    (tmp_path / "_info.json").write_text(text)
    (tmp_path / "val-000000.tar").write_bytes(b"")
    status, said = spoken(lambda: None, "verify", tmp_path)
    assert status == 2 and "_info.json: cannot be read" in said and len(said.splitlines()) == 1, said


@pytest.mark.parametrize("kind", [*PACKED, "folders"])
def test_a_disk_that_fills_up_is_one_line_and_nothing_is_lost(kind, digits, downloads, tmp_path):
    """No file may grow beyond a size, as with `ulimit -f`."""
    source, out = downloads if kind == "folders" else digits, tmp_path / "out"
    extra = ["--images-per-shard", 20] if kind == "shards" else ["--partial"] if kind == "folders" else []
    if kind == "folders":
        large = io.BytesIO()
        with tarfile.open(fileobj=large, mode="w") as archive:
            add(archive, "large.JPEG", bytes(5000))
        with tarfile.open(downloads / "ILSVRC2012_img_train.tar", "a") as archive:
            add(archive, "n00000009.tar", large.getvalue())
    limit = 4000
    status, said = spoken(
        lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)), kind, source, "--output", out, *extra
    )
    assert status == 5 and len(said.splitlines()) == 1, said
    assert said.startswith(f"error: {out}") and "cannot be written (File too large); free space" in said
    kept = content(out)
    assert not {"train.zip", "train.tar", "train-000000.tar", "data/train-00000-of-00001.parquet"} & set(kept)
    assert prepare(kind, source, "--output", out, *extra) == 0
    if kind != "folders":
        assert found(out)["splits"] == found(digits)["splits"] and not found(out)["problems"]
    else:
        assert (out / "train/n00000009/large.JPEG").stat().st_size == 5000
        assert {name.replace(".unfinished", "") for name in kept if "/." not in name} < set(content(out))


def test_no_room_is_found_before_anything_is_written(digits, downloads, tmp_path, monkeypatch):
    real = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: real._replace(free=2000))
    for kind in (*PACKED, "folders"):
        source, extra = (downloads, ["--partial"]) if kind == "folders" else (digits, [])
        said = refused(OutputError, kind, source, "--output", tmp_path / kind, *extra)
        assert said.startswith(f"{tmp_path / kind}: 0.000 GB are needed and 0.000 GB are free; free space")
        assert {Path(name).name for name in content(tmp_path / kind)} == {f".prepare_{kind}.json"}


@pytest.mark.parametrize("kind", PACKED)
def test_other_arguments_or_images_are_refused(kind, copy, tmp_path):
    out = tmp_path / "out"
    prepare(kind, copy, "--output", out)
    before = content(out)
    said = refused(ConfigError, kind, copy, "--output", out, "--splits", "train")
    assert said == f"--splits: is train, and {out} was begun with train val; give that, or another --output"
    if kind in ("shards", "parquet"):
        assert refused(ConfigError, kind, copy, "--output", out, "--shard-size", 7).startswith(
            "--shard-size: is 7, and "
        )
    if kind == "shards":
        assert refused(ConfigError, kind, copy, "--output", out, "--seed", 7).startswith("--seed: is 7, and ")
        assert refused(ConfigError, kind, copy, "--output", out, "--images-per-shard", 7).startswith(
            "--images-per-shard: is 7, and "
        )
    victim = sorted((copy / "val/1").iterdir())[0]
    victim.write_bytes(victim.read_bytes()[::-1])  # of the same size
    assert refused(DataError, kind, copy, "--output", out).startswith(
        f"val's images: other than when {out} was begun; give"
    )
    assert content(out) == before


def test_other_archives_are_refused(downloads, tmp_path):
    prepare("folders", downloads, "--output", tmp_path / "out", "--partial")
    os.utime(downloads / "ILSVRC2012_img_train.tar", (0, 0))
    assert refused(DataError, "folders", downloads, "--output", tmp_path / "out").startswith(
        "ILSVRC2012_img_train.tar: other than when "
    )


@pytest.mark.parametrize("kind", [*PACKED, "folders"])
def test_what_is_there_is_never_overwritten(kind, digits, downloads, tmp_path):
    name = {
        "zip": "train_map.txt",
        "tar": "val.tar",
        "shards": "train-000003.tar",
        "parquet": "data/train-1.parquet",
        "folders": "val",
    }[kind]
    (tmp_path / "out/data").mkdir(parents=True)
    (tmp_path / "out" / name).write_text("mine")
    said = refused(ConfigError, kind, downloads if kind == "folders" else digits, "--output", tmp_path / "out")
    assert said.startswith(f"{tmp_path / 'out' / name}: is there and was not made by this command")
    assert content(tmp_path / "out") == {name: b"mine"}


# Bad input


def test_one_line_for_bad_folders(copy, tmp_path):
    out = tmp_path / "out"

    def said(source=copy) -> str:
        assert not out.exists()
        return refused(DataError, "tar", source, "--output", out)

    assert said(tmp_path / "none").startswith(f"{tmp_path / 'none'}: no such folder")
    assert said(tmp_path).startswith(f"{tmp_path / 'train'}: no such folder")
    (copy / "val/3").mkdir()
    assert said().startswith(f"{copy / 'val'}: no image in the class' folder '3'; ") and "DATA." not in said()
    (copy / "val/3").rmdir()
    (copy / "val/2").rename(copy / "2")
    assert said().startswith(f"{copy / 'val'}: lacks class '2' and 0 more that {copy / 'train'} has")
    (copy / "2").rename(copy / "val/2")
    path = copy / "train/1/a\tb.png"
    path.write_bytes(b"")
    assert said().startswith(f"{str(path)!r}: its name has unprintable characters; rename")
    path.unlink()
    (copy / "train/1/a.png").symlink_to("gone.png")
    assert said().startswith(f"{copy / 'train/1/a.png'}: cannot be read (No such file or directory)")


def test_a_link_out_of_the_folder_needs_a_flag(copy, tmp_path):
    (tmp_path / "away.png").write_bytes(b"elsewhere")
    (copy / "val/1/a.png").symlink_to(tmp_path / "away.png")
    said = refused(DataError, "tar", copy, "--output", tmp_path / "out")
    assert said.startswith(f"{copy / 'val/1/a.png'}: is a link out of its folder") and said.endswith(
        "or give --outside-links if you trust it"
    )
    prepare("tar", copy, "--output", tmp_path / "out", "--outside-links")
    with tarfile.open(tmp_path / "out/val.tar") as file:
        assert file.extractfile("1/a.png").read() == b"elsewhere"


@pytest.mark.parametrize("kind", PACKED)
def test_an_image_that_goes_or_grows_meanwhile(kind, copy, tmp_path, monkeypatch):
    victim = sorted((copy / "val/1").iterdir())[0]
    data, room = victim.read_bytes(), preparation.require_room
    for harm, reason in (
        (
            victim.unlink,
            "cannot be read as an image (FileNotFoundError: No such file or directory); replace or remove the file",
        ),
        (lambda: victim.write_bytes(data + b"x"), "has changed since the start"),
    ):
        out = tmp_path / reason[:5]
        for module in (archives, shards, sys.modules["data.prepare.parquet"]):
            monkeypatch.setattr(module, "require_room", lambda *args: (harm(), room(*args)))
        said = refused(DataError, kind, copy, "--output", out)
        assert said.startswith(f"{victim}: {reason}") and "DATA.ON_ERROR" not in said
        assert not any(
            (out / name).exists()
            for name in ("val.zip", "val.tar", "_info.json", "data/validation-00000-of-00001.parquet")
        )
        victim.write_bytes(data)


def cut(path: Path, share: float) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def test_one_line_for_bad_archives(digits, downloads, tmp_path):
    out, train, val = tmp_path / "out", downloads / "ILSVRC2012_img_train.tar", downloads / "ILSVRC2012_img_val.tar"

    def said(*flags) -> str:
        text = refused(UserError, "folders", downloads, "--output", out, "--partial", *flags)
        assert not (out / "train").exists() and not (out / "val").exists()
        shutil.rmtree(out, ignore_errors=True)
        return text

    original = {path: path.read_bytes() for path in (train, val, downloads / devkit.NAME)}
    for path in (train, val):
        path.unlink()
        assert said().startswith(f"{path}: no such file; put ImageNet's {path.name} there")
        path.write_bytes(original[path][: len(original[path]) // 2])
        assert re.match(rf"{path}: is no tar archive, or cut short \(.*\); fetch", said())
        path.write_bytes(b"<html>not found</html>" * 100)
        assert said().startswith(f"{path}: is no tar archive, or cut short")
        path.write_bytes(original[path])
    kit = downloads / devkit.NAME
    kit.unlink()
    assert said().startswith(f"{kit}: no such file")
    kit.write_bytes(original[kit][:-100])
    assert said().startswith(f"{kit}: cannot be read to its end")
    write_devkit(kit, digits, year=2010)
    assert said().startswith(
        f"{kit}: holds no data/ILSVRC2012_validation_ground_truth.txt, so it is no devkit of ILSVRC2012"
    )
    kit.write_bytes(original[kit])
    with tarfile.open(val, "w") as archive:
        add(archive, "ILSVRC2012_val_00000030.JPEG", b"x")
    assert said("--splits", "val").startswith(
        f"{val}: holds 'ILSVRC2012_val_00000030.JPEG', of which the devkit says no class"
    )
    with tarfile.open(train, "w") as archive:
        add(archive, "n00000001.tar", class_tar(digits, "1")[:5000])
    assert said("--splits", "train").startswith(f"{train}: n00000001.tar: is no tar archive, or cut short")


@pytest.mark.parametrize("name, kind", [("../evil.JPEG", None), ("/tmp/evil.JPEG", None), ("a/b.JPEG", None), ("a.JPEG", tarfile.SYMTYPE), ("a.JPEG", tarfile.LNKTYPE), ("a.JPEG", tarfile.FIFOTYPE), ("twice", None)])  # fmt: skip
def test_members_that_lead_elsewhere_write_nothing(name, kind, digits, downloads, tmp_path):
    def harm(archive):
        member = tarfile.TarInfo(name)
        if kind:
            member.type, member.linkname = kind, "../../secret"
        archive.addfile(member)
        if name == "twice":
            archive.addfile(member)

    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w") as archive:
        harm(archive)
    with tarfile.open(downloads / "ILSVRC2012_img_train.tar", "w") as archive:
        add(archive, "n00000001.tar", inner.getvalue())
    with tarfile.open(downloads / "ILSVRC2012_img_val.tar", "a") as archive:
        harm(archive)
    before = set(tmp_path.rglob("*")) | set(Path("/tmp").glob("evil*"))
    for split in ("train", "val"):
        said = refused(DataError, "folders", downloads, "--output", tmp_path / "out", "--partial", "--splits", split)
        assert (
            "twice; fetch" in said
            if name == "twice"
            else "is no plain file of a plain name; nothing was written for it" in said
        )
        shutil.rmtree(tmp_path / "out")
    assert set(tmp_path.rglob("*")) | set(Path("/tmp").glob("evil*")) == before


def test_imagenet_s_counts_and_classes_are_required(downloads, tmp_path, monkeypatch):
    arguments = ("folders", downloads, "--output", tmp_path / "out", "--splits", "train")
    said = refused(DataError, *arguments)
    assert said.startswith(f"{downloads}/ILSVRC2012_img_train.tar: has 60 images and ImageNet's has 1,281,167; ")
    assert not (tmp_path / "out/train").exists()
    monkeypatch.setitem(imagenet.COUNTS, "train", 60)
    assert "lacks class 'n01440764' and 999 more that ImageNet has" in refused(DataError, *arguments)
    monkeypatch.setattr(imagenet, "read_class_map", lambda name: dict.fromkeys(SYNSETS.values()))
    assert prepare(*arguments) == 0 and (tmp_path / "out/train").is_dir()


def test_missing_packages_are_one_line(digits, packed, downloads, tmp_path, monkeypatch):
    for kind, package in (("shards", "webdataset"), ("parquet", "datasets"), ("folders", "scipy")):
        for name in [name for name in sys.modules if name == package or name.startswith(f"{package}.")]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, package, None)
        if package == "scipy":
            monkeypatch.setitem(sys.modules, "scipy.io", None)
        source = downloads if kind == "folders" else digits
        said = refused(ConfigError, kind, source, "--output", tmp_path / kind)
        assert re.match(rf"{package}(\.io)?: cannot be imported", said) and said.endswith(f"pip install {package}")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    said = refused(ConfigError, "verify", packed / "parquet")
    assert said.startswith("pyarrow.parquet: cannot be imported") and said.endswith("pip install datasets")


def test_no_permission(digits, tmp_path):
    if os.geteuid() == 0:
        pytest.skip("the superuser may write everywhere")
    tmp_path.chmod(0o500)
    said = refused(OutputError, "tar", digits, "--output", tmp_path / "out")
    tmp_path.chmod(0o700)
    assert said.startswith(f"{tmp_path / 'out'}: cannot be written to (Permission denied)")


def test_two_conversions_into_one_folder(digits, tmp_path):
    holder = preparation.RunLock(tmp_path)
    pid = os.fork()
    if not pid:
        holder.acquire()
        signal.pause()
    try:
        while not (tmp_path / ".lock").exists() or not (tmp_path / ".lock").read_text():
            pass
        said = refused(OutputError, "tar", digits, "--output", tmp_path)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert said.startswith(f"{tmp_path}: is in use by process {pid} on ") and said.endswith("or use another --output")


# verify finds what is wrong


def test_verify_names_damaged_images_in_every_format(copy, tmp_path):
    victim = sorted((copy / "train/1").iterdir())[3]
    cut(victim, 0.6)
    (copy / "val/2/a.png").write_bytes(b"")
    for kind in PACKED:
        prepare(kind, copy, "--output", tmp_path / kind)
    for kind in ("folder", *PACKED):
        path = copy if kind == "folder" else tmp_path / kind
        report = found(path, kind)
        assert len(report["problems"]) == 2, report["problems"]
        if kind != "folder":  # whose error is FolderSource's, and names the file
            assert report["problems"][0].startswith(f"{path}: train 1/{victim.name}: cannot be read as an image (")
            assert report["problems"][1] == f"{path}: val 2/a.png: cannot be read as an image (empty)"
        else:
            assert victim.name in report["problems"][0] and "2/a.png" in report["problems"][1]


def test_verify_by_several_processes(copy, capsys):
    cut(sorted((copy / "train/1").iterdir())[3], 0.6)
    here, there = (verify.verify(copy, workers=workers) for workers in (0, 2))
    assert here == there and len(here["problems"]) == 1
    assert prepare("verify", copy, "--workers", 0) == 1
    lines = capsys.readouterr().out.splitlines()
    assert (
        lines[0].startswith("train: 60 images, 0.000 GB, 3 classes of 20 to 20, hash ")
        and lines[2] == f"wrong: {here['problems'][0]}"
    )
    assert prepare("verify", copy, "--workers", 0, "--json") == 1
    assert json.loads(capsys.readouterr().out) == here


@pytest.mark.parametrize("kind, file", [("zip", "val.zip"), ("tar", "val.tar"), ("shards", "val-000001.tar"), ("parquet", "data/validation-00000-of-00001.parquet")])  # fmt: skip
def test_verify_finds_files_that_are_cut_short_or_gone(kind, file, packed, digits, tmp_path):
    for harm in ("cut", "gone"):
        out = tmp_path / harm
        shutil.copytree(packed / kind, out)
        cut(out / file, 0.5) if harm == "cut" else (out / file).unlink()
        report = found(out)
        right = found(digits, decode=False)["splits"]
        assert report["splits"]["train"]["hash"] == right["train"]["hash"]
        assert report["splits"].get("val", {}).get("hash") != right["val"]["hash"]
        # else there is no sign of the split, and it is not in the report
        if harm == "cut" or kind in ("zip", "shards"):
            assert any(problem.startswith(f"{out / file}: cannot be read") for problem in report["problems"])
        else:
            assert "val" not in report["splits"]


@pytest.mark.parametrize("prefix", ["", "val/", "data/imagenet/val/", "imagenet_val/"])
@pytest.mark.parametrize("kind", ["tar", "tar of tars", "zip", "zip with a map", "zip with a map of the same"])
def test_verify_takes_off_leading_folders_as_reading_does(digits, tmp_path, kind, prefix):
    keys = sorted(expected(digits, "val"))
    form = kind.split()[0]
    if kind == "tar of tars":
        with tarfile.open(tmp_path / "val.tar", "w") as archive:
            for name in "012":
                inner = io.BytesIO()
                with tarfile.open(fileobj=inner, mode="w") as classes:
                    classes.add(digits / "val" / name, ".")
                add(archive, f"{prefix}{name}.tar", inner.getvalue())
    elif form == "tar":
        with tarfile.open(tmp_path / "val.tar", "w") as archive:
            archive.add(digits / "val", prefix or ".")
    else:
        with zipfile.ZipFile(tmp_path / "val.zip", "w") as archive:
            for key in keys:
                archive.write(digits / "val" / key, prefix + key)
    if "map" in kind:
        inside = prefix if "same" in kind else ""
        (tmp_path / "val_map.txt").write_text("".join(f"{inside}{key}\t{key[0]}\n" for key in keys))
    report, folder = found(tmp_path, form), found(digits, "folder")
    assert not report["problems"]
    assert report["splits"]["val"] == folder["splits"]["val"]
    assert len(open_source(form, "val", str(tmp_path))) == 29


def test_verify_finds_repeated_names(packed, tmp_path):
    for kind in ("zip", "tar", "shards"):
        shutil.copytree(packed / kind, tmp_path / kind)
    with zipfile.ZipFile(tmp_path / "zip/val.zip", "a") as file, pytest.warns(UserWarning, match="Duplicate name"):
        key = file.namelist()[0]
        file.writestr(key, file.read(key))
    with tarfile.open(tmp_path / "tar/val.tar", "a") as file:
        add(file, key, b"again")
    shutil.copy(tmp_path / "shards/val-000000.tar", tmp_path / "shards/val-000001.tar")
    for kind in ("zip", "tar"):
        assert found(tmp_path / kind, decode=False)["problems"] == [f"{tmp_path / kind}: val {key}: is there 2 times"]
    problems = found(tmp_path / "shards")["problems"]
    assert f"{tmp_path / 'shards'}: val {key}: is there 2 times" in problems


def test_verify_finds_wrong_labels(packed, digits, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    for kind in ("zip", "shards", "parquet"):
        shutil.copytree(packed / kind, tmp_path / kind)
    key = sorted(expected(digits, "val"))[12]
    text = (tmp_path / "zip/val_map.txt").read_text()
    (tmp_path / "zip/val_map.txt").write_text(text.replace(f"{key}\t1\n", f"{key}\t2\n"))
    shard = tmp_path / "shards/val-000001.tar"
    data = shard.read_bytes()
    assert data.count(b'"label": 1') > 1
    shard.write_bytes(data.replace(b'"label": 1', b'"label": 2', 1))
    path = tmp_path / "parquet/data/validation-00000-of-00001.parquet"
    table = pq.read_table(path)
    labels = table["label"].to_pylist()
    labels[12] = 2
    pq.write_table(table.set_column(1, table.schema.field("label"), pa.array(labels)), path)
    for kind in ("zip", "parquet"):
        assert found(tmp_path / kind)["problems"] == [f"{tmp_path / kind}: val {key}: has label 2, its class' is 1"]
    assert [p for p in found(tmp_path / "shards")["problems"] if "its cls says label 1, its json 2" in p]


def test_verify_finds_what_the_lists_do_not_say(packed, tmp_path):
    for kind in ("zip", "shards"):
        shutil.copytree(packed / kind, tmp_path / kind)
    lines = (tmp_path / "zip/train_map.txt").read_text().splitlines(keepends=True)
    (tmp_path / "zip/train_map.txt").write_text("".join([*lines[1:], "2/none.png\t2\n"]))
    problems = found(tmp_path / "zip")["problems"]
    assert f"{tmp_path / 'zip/train.zip'}: has no 2/none.png, which train_map.txt names" in problems
    assert any("does not name 0/" in problem for problem in problems)
    info = json.loads((tmp_path / "shards/_info.json").read_text())
    info["splits"]["train"]["shard_lengths"][0] += 1
    (tmp_path / "shards/_info.json").write_text(json.dumps(info))
    shutil.copy(tmp_path / "shards/val-000000.tar", tmp_path / "shards/val-000009.tar")
    with open(tmp_path / "shards/val-000001.tar", "ab") as file:
        file.write(bytes(512))
    problems = found(tmp_path / "shards")["problems"]
    assert any(
        problem.startswith(f"{tmp_path / 'shards/val-000001.tar'}: has ") and " bytes, _info" in problem
        for problem in problems
    )
    for end in (
        "train-000000.tar: has 7 images, _info.json says 8",
        "val-000009.tar: is not named in _info.json",
        "do not add up to 60",
    ):
        assert any(problem.endswith(end) for problem in problems), (end, problems)


def test_verify_of_what_is_unfinished_unlike_or_nothing(packed, digits, copy, tmp_path):
    shutil.copytree(packed / "tar", tmp_path / "tar")
    (tmp_path / "tar/train.tar").rename(tmp_path / "tar/train.tar.unfinished")
    assert found(tmp_path / "tar")["problems"] == [
        f"{tmp_path / 'tar/train.tar.unfinished'}: is unfinished; start the conversion again"
    ]
    shutil.rmtree(copy / "val/2")
    assert found(copy)["problems"] == [f"{copy}: class '2' is in train only; labels differ"]
    (tmp_path / "none").mkdir()
    assert refused(DataError, "verify", tmp_path / "none").startswith(
        f"{tmp_path / 'none'}: holds no train or val in any of the formats"
    )
    assert refused(DataError, "verify", tmp_path / "none/x").startswith(f"{tmp_path / 'none/x'}: no such folder")
    shutil.copytree(packed / "zip", tmp_path / "tar", dirs_exist_ok=True)
    assert refused(DataError, "verify", tmp_path / "tar").startswith(
        f"{tmp_path / 'tar'}: holds several formats, zip, tar; say which"
    )


def test_a_conversion_that_differs_from_its_source_is_found(copy, tmp_path, monkeypatch, capsys):
    original = images.Images.read
    monkeypatch.setattr(images.Images, "read", lambda self, index: original(self, 1 if index == 0 else index))
    assert prepare("zip", copy, "--output", tmp_path / "out", "--verify", "--workers", 0) == 1
    assert f"wrong: {tmp_path / 'out'}: train is not what {copy} holds" in capsys.readouterr().out


def test_a_signal_ends_it_with_its_status_and_no_traceback(digits, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["prepare_data.py", "tar", str(digits), "--output", str(tmp_path)])
    original = preparation.Progress.add
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]

    def add_and_signal(self, *args):
        original(self, *args)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(preparation.Progress, "add", add_and_signal)
    try:
        assert prepare_data.run() == 143
    finally:
        for number, handler in zip((signal.SIGINT, signal.SIGTERM), before):
            signal.signal(number, handler)
    assert capsys.readouterr().err == "stopped; start the same command again, it goes on\n"
    monkeypatch.setattr(preparation.Progress, "add", original)
    assert prepare("tar", digits, "--output", tmp_path) == 0 and not found(tmp_path)["problems"]


def test_the_split_that_a_format_knows_by_another_name(packed):
    assert read.guess(packed / "parquet") == "parquet" and set(found(packed / "parquet")["splits"]) == {"train", "val"}
