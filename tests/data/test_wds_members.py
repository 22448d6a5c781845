"""Which members of a shard are a sample, its image and its label: in any layout, counted as they are read."""

import functools
import io
import json
import random
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import prepare_data
from conftest import error_of, run
from data.class_maps import read_class_map
from data.decode import decode_image
from data.prepare import verify
from data.sources import Opening, open_source
from data.transforms import eval_transform
from engine.tasks import create_task
from utils.config import load_config
from utils.errors import DataError
from utils.files import sha256_of

COUNT = 6  # samples in a shard

# Members of sample n, in order. The image is the one with a star; the label is n % 3.
LAYOUTS = {
    "plain": ["*{n}.png", "{n}.cls"],
    "mask first": ["{n}.mask.png", "*{n}.png", "{n}.cls"],
    "mask after": ["{n}.cls", "*{n}.png", "{n}.seg.png", "{n}.depth.tif"],
    "mask of another kind": ["{n}.mask.png", "*{n}.jpg", "{n}.cls"],
    "dots": ["*img.{n}.png", "img.{n}.cls"],
    "dots, label first": ["img.{n}.cls", "*img.{n}.png"],
    "dots and mask": ["img.{n}.mask.png", "*img.{n}.png", "img.{n}.cls"],
    "dots, mask last": ["img.{n}.cls", "*img.{n}.png", "img.{n}.mask.png"],
    "many dots": ["*a.b-{n}.c.webp", "a.b-{n}.c.json"],
    "dots and long suffix": ["*img.{n}.rgb.png", "img.{n}.cls"],
    "capitals": ["{n}.MASK.PNG", "*{n}.JPG", "{n}.CLS"],
    "capitals in the key": ["*IMG.{n}.JPeG", "IMG.{n}.cls"],
    "from here": ["*./{n}.png", "./{n}.cls"],
    "folder": ["*val/{n}.png", "val/{n}.cls"],
    "folder with dots": ["*v1.0/{n}.png", "v1.0/{n}.cls"],
    "folder with dots from here": ["./v1.0/{n}.mask.png", "*./v1.0/{n}.png", "./v1.0/{n}.cls"],
    "a folder each": ["*s.{n}/photo.png", "s.{n}/photo.cls"],
    "macOS": ["*{n}.png", "._{n}.png", "{n}.cls", "__MACOSX/._{n}.png", "__MACOSX/{n}.cls"],
    "macOS first": ["./._{n}.jpg", "*./{n}.jpg", "./._{n}.cls", "./{n}.cls"],
    "hidden and tools'": [".DS_Store", "@eaDir/{n}.jpg", "*{n}.jpg", ".{n}.jpg", "{n}.cls", "x/Thumbs.db"],
    "no suffix": ["*{n}.png", "{n}", "{n}.cls"],
    "of webdataset": ["__about__/{n}.png", "*{n}.png", "{n}.cls"],
    "long suffix": ["*{n}.image.jpg", "{n}.cls"],
    "long suffix beside a text": ["{n}.meta.txt", "*{n}.img.png", "{n}.cls"],
    "json": ["*{n}.png", "{n}.json"],
    "txt": ["{n}.txt", "*{n}.png"],
    "caption": ["{n}.caption.txt", "*{n}.png", "{n}.cls"],
    "more labels": ["{n}.coarse.cls", "*{n}.png", "{n}.cls", "{n}.meta.json"],
}


def label_text(name: str, label: object) -> bytes:
    return json.dumps({"label": label}).encode() if name.lower().endswith("json") else f"{label}\n".encode()


def write_shard(path: Path, members: list[tuple[str, bytes]]) -> None:
    path.parent.mkdir(exist_ok=True, parents=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def members_of(layout: list[str], image=lambda n: b"image %d" % n, label=lambda n: n % 3) -> list:
    """Names and contents of `COUNT` samples of the layout."""
    members = []
    for n in range(COUNT):
        for template in layout:
            name = template.lstrip("*").format(n=n)
            is_label = name.lower().endswith((f"{n}.cls", f"{n}.json", f"{n}.txt", "c.json", "o.cls"))
            other = label_text(name, label(n)) if is_label else b"none of it"
            members.append((name, image(n) if template[0] == "*" else other))
    return members


def opened(root: Path, columns=("image", "label"), num_classes=3, **more):
    return open_source("wds", "val", str(root), opening=Opening(num_classes=num_classes, columns=columns, **more))


def read_all(source) -> list:
    return [sample for shard in range(len(source.shards)) for sample in source.read(shard)]


def refusal(root: Path, *members: str, columns=("image", "label")) -> str:
    """What is said of a shard with these members, when it is counted and when it is read."""
    write_shard(root / "val-0.tar", [(name, label_text(name, 1)) for name in members])
    with pytest.raises(DataError) as counted:
        opened(root, columns)
    source = open_source("wds", "val-0.tar|1", str(root), opening=Opening(num_classes=3, columns=columns))
    with pytest.raises(DataError) as read:
        read_all(source)
    assert str(counted.value) == str(read.value) and "\n" not in str(read.value)
    return str(read.value).removeprefix(f"{root}/val-0.tar:")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_right_members_are_counted_and_read(tmp_path, layout):
    members = members_of(LAYOUTS[layout])
    for number in range(2):
        write_shard(tmp_path / f"val-{number}.tar", members)
    source = opened(tmp_path)
    samples = read_all(source)
    assert source.lengths == [COUNT, COUNT] and len(source) == len(samples) == 2 * COUNT
    right = [(b"image %d" % n, n % 3) for n in range(COUNT)]
    assert [(sample.data, sample.label) for sample in samples] == 2 * right
    # the key of a sample is that of its image's file
    star = next(name for name in LAYOUTS[layout] if name[0] == "*")[1:].removeprefix("./")
    named = [split_suffix(star.format(n=n), layout) for n in range(COUNT)]
    assert [sample.key for sample in samples[:COUNT]] == [stem + suffix.lower() for stem, suffix in named]


def split_suffix(name: str, layout: str) -> tuple[str, str]:
    dot = name.rindex(".") if "long suffix" not in layout else name.rindex(".", 0, name.rindex("."))
    return name[:dot], name[dot:]


def test_an_info_changes_nothing(tmp_path):
    write_shard(tmp_path / "val-0.tar", members_of(LAYOUTS["dots and mask"]))
    split = {"name": "val", "filenames": ["val-0.tar"], "shard_lengths": [COUNT], "num_samples": COUNT}
    (tmp_path / "_info.json").write_text(json.dumps({"splits": {"val": split}, "classes": ["a", "b", "c"]}))
    source = opened(tmp_path)
    right = [(b"image %d" % n, n % 3) for n in range(COUNT)]
    assert [(sample.data, sample.label) for sample in read_all(source)] == right
    split["shard_lengths"] = [2 * COUNT]  # as many as there are images, masks with them
    (tmp_path / "_info.json").write_text(json.dumps({"splits": {"val": split}, "classes": ["a", "b", "c"]}))
    with pytest.raises(DataError, match="holds 6 images, _info.json says 12"):
        read_all(opened(tmp_path))


def test_keys_with_dots_and_members_in_any_order(tmp_path):
    """Of 60 samples, in each of 20 shards."""
    drawn = random.Random(0)
    for number in range(20):
        members, right = [], []
        for n in range(60):
            key = drawn.choice(["a", "a.b", "v1.0/a", "v1.0/a.b.c", "IMG_2024.01.02"]) + f".{n:03d}"
            if drawn.random() < 0.5:
                key = key.replace(".", "-")
            image = drawn.choice(["png", "JPG", "webp"])
            more = drawn.sample(["mask.png", "seg.tif", "note.txt", "meta.json", "npy"], drawn.randrange(4))
            own = [(f"{key}.{image}", b"image %d" % n), (f"{key}.cls", b"%d" % (n % 3))]
            own += [(f"{key}.{suffix}", b"none of it") for suffix in more]
            drawn.shuffle(own)
            members += own
            right.append((f"{key}.{image.lower()}", b"image %d" % n, n % 3))
        write_shard(tmp_path / f"{number}" / "val-0.tar", members)
        source = opened(tmp_path / f"{number}")
        assert len(source) == 60 and [(s.key, s.data, s.label) for s in read_all(source)] == right


REFUSED = {
    "two images": (
        ["7.jpg", "7.png", "7.cls"],
        "7: has several images, jpg, png; choose one in DATA.COLUMNS, such as [jpg, cls]",
    ),
    "no image has a suffix alone": (
        ["7.cls", "7.mask.png", "7.img.png"],
        "7: has several images, mask.png, img.png; choose one in DATA.COLUMNS, such as [mask.png, cls]",
    ),
    "no image": (["7.txt"], "7: has no image, but txt; each sample needs a .jpg, .png or the like"),
    "a hidden image": (
        ["._7.png", "7.cls"],
        "7: has no image, but cls; each sample needs a .jpg, .png or the like",
    ),
    "no label": (
        ["7.png", "7.npy"],
        "7: has no label, but png, npy; each sample needs one in .cls, .json or .txt",
    ),
    "a label of another name": (
        ["7.png", "7.png.cls"],
        "7: has no image and cls with the same name, but png, png.cls; name their suffixes in DATA.COLUMNS",
    ),
    "one sample or two": (
        ["img.png", "img.cls", "img.0.png", "img.0.cls"],
        "img: is one sample, or 'img.0' another one, which has an image and a label too; name the members' "
        "suffixes in DATA.COLUMNS, or make the shard anew with keys without dots",
    ),
    "twice": (
        ["7.png", "7.cls", "7.PNG"],
        "7.PNG: is there twice; make the shard anew, with the members of each sample in a row",
    ),
    "images first": (
        ["img.0.png", "img.1.png", "img.0.cls", "img.1.cls"],
        "img.1.png: is of no sample, as no image and label of its name lie beside it; make the shard anew, with "
        "the members of each sample in a row",
    ),
    "outside": (
        ["../7.png", "7.cls"],
        " holds '../7.png', a name that leads out of it; make the archive anew from files that you trust",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_can_be_understood_in_two_ways_is_refused(tmp_path, case):
    members, line = REFUSED[case]
    assert refusal(tmp_path, *members).removeprefix(f"{tmp_path}/val-0.tar") == line


def test_a_mask_with_a_label_is_no_sample(tmp_path):
    """It is refused, unless another kind of label is before it, or DATA.COLUMNS says which label counts."""
    for members in (
        ["a.m.png", "a.m.json", "a.png", "a.json"],
        ["a.png", "a.json", "a.m.png", "a.m.json"],
        ["a.m.png", "a.m.json", "a.png", "a.cls"],
    ):
        assert refusal(tmp_path, *members).startswith("a: is one sample, or 'a.m' another one")
    members = [("a.m.png", b"mask"), ("a.m.json", b"{}"), ("a.png", b"image"), ("a.cls", b"2")]
    write_shard(tmp_path / "val-0.tar", members[2:] + members[:2])
    assert [(s.data, s.label) for s in read_all(opened(tmp_path))] == [(b"image", 2)]
    write_shard(tmp_path / "val-0.tar", members)
    for columns in (("png", "cls"), ("image", "cls")):
        assert [(s.data, s.label) for s in read_all(opened(tmp_path, columns))] == [(b"image", 2)]


@pytest.mark.parametrize("columns, image, label", [
    (("rgb.png", "cls"), b"rgb", 0), (("Mask.PNG", ".fine.cls"), b"mask", 1), (("image", "fine.cls"), b"jpg", 1),
    (("jpg", "txt"), b"jpg", 2), (("rgb.png", "json:kind"), b"rgb", 2), (("image", "json"), b"jpg", 1),
    (("image", "label"), b"jpg", 0),
])  # fmt: skip
def test_columns_choose_the_members(tmp_path, columns, image, label):
    members = {
        "rgb.png": b"rgb", "mask.png": b"mask", "jpg": b"jpg", "cls": b"0", "fine.cls": b"1", "txt": b"2",
        "json": b'{"label": 1, "kind": 2, "key": "x"}',
    }  # fmt: skip
    named = [(f"{n}.{suffix}", data) for n in range(3) for suffix, data in members.items()]
    write_shard(tmp_path / "val-0.tar", named)
    source = opened(tmp_path, columns)
    assert [(sample.data, sample.label) for sample in read_all(source)] == 3 * [(image, label)]
    assert len(source) == 3 and not source.notes


def test_columns_that_are_not_there(tmp_path):
    def said(*columns: str) -> str:
        return refusal(tmp_path, "7.png", "7.cls", columns=columns)

    assert said("rgb.png", "cls") == "7: has no member rgb.png, but png, cls; correct DATA.COLUMNS"
    assert said("png", "txt") == "7: has no member txt, but png, cls; correct DATA.COLUMNS"


def test_an_image_of_a_longer_suffix_is_said(tmp_path, capsys):
    write_shard(tmp_path / "val-0.tar", members_of(LAYOUTS["long suffix"]))
    line = (
        f"{tmp_path}/val-0.tar: the image of 0 is taken to be its member image.jpg, likewise in other samples; "
        "DATA.COLUMNS names another"
    )
    assert opened(tmp_path).notes == [line]
    assert open_source("wds", "val-{0..0}.tar|6", str(tmp_path), opening=Opening(num_classes=3)).notes == [
        line
    ]  # not counted
    assert opened(tmp_path, ("image.jpg", "cls")).notes == []
    piped = open_source("wds", f"pipe:cat {tmp_path}/val-{{0..0}}.tar|6", str(tmp_path), opening=Opening(num_classes=3))
    assert piped.notes == [] and len(read_all(piped)) == len(read_all(piped)) == COUNT
    assert capsys.readouterr().err == line.replace(f"{tmp_path}/val", f"pipe:cat {tmp_path}/val") + "\n"


def test_members_that_are_left_out_are_said(tmp_path):
    write_shard(tmp_path / "val-0.tar", members_of(LAYOUTS["macOS"]))
    (note,) = opened(tmp_path).notes
    assert note.startswith(f"{tmp_path}: left out") and note.endswith(f": {3 * COUNT} (such as ._0.png)")
    write_shard(tmp_path / "val-0.tar", members_of(LAYOUTS["mask first"]))
    assert opened(tmp_path).notes == []


# Labels


@pytest.mark.parametrize("suffix", ["cls", "txt", "json"])
def test_labels_can_be_class_names(tmp_path, suffix):
    names = ["zebra", "an apple", "n01440764"]
    layout = ["*{n}.png", f"{{n}}.{suffix}"]
    write_shard(tmp_path / "val-0.tar", members_of(layout, label=lambda n: names[n % 3]))
    (tmp_path / "map.txt").write_text("n01440764\nzebra\nan apple\n")
    source = opened(tmp_path, num_classes=0, class_to_idx=read_class_map(str(tmp_path / "map.txt")))
    assert [sample.label for sample in read_all(source)] == 2 * [1, 2, 0]
    with pytest.raises(DataError) as refused:
        read_all(opened(tmp_path))
    assert str(refused.value) == (
        f"{tmp_path}/val-0.tar:0: has label 'zebra', which is no number and none of the 3 classes; name the "
        "classes in DATA.CLASS_MAP, a text file with a name in each line, in label order"
    )
    split = {"name": "val", "filenames": ["val-0.tar"], "shard_lengths": [COUNT], "num_samples": COUNT}
    (tmp_path / "_info.json").write_text(json.dumps({"splits": {"val": split}, "classes": names}))
    assert [sample.label for sample in read_all(opened(tmp_path, num_classes=0))] == 2 * [0, 1, 2]
    ordered = opened(tmp_path, num_classes=0, class_to_idx=read_class_map(str(tmp_path / "map.txt")))
    assert [sample.label for sample in read_all(ordered)] == 2 * [1, 2, 0]


def test_wordnet_ids_need_no_map(tmp_path):
    write_shard(tmp_path / "val-0.tar", [("7.png", b""), ("7.cls", b"n01443537")])
    assert [sample.label for sample in read_all(opened(tmp_path, num_classes=1000))] == [1]


@pytest.mark.parametrize("text, label", [(b" 2\n", 2), (b"\xef\xbb\xbf1", 1), (b"02", 2)])
def test_labels_that_are_numbers(tmp_path, text, label):
    write_shard(tmp_path / "val-0.tar", [("7.png", b""), ("7.cls", text)])
    assert [sample.label for sample in read_all(opened(tmp_path))] == [label]


@pytest.mark.parametrize("suffix, data, said", [
    ("cls", b"", "has no label"), ("cls", b"-1", "has label -1, of 3"), ("cls", b"1.5", "has label '1.5', which"),
    ("cls", b"3", "has label 3, of 3"), ("txt", b"a cat", "has label 'a cat'"), ("json", b"{", "has no label"),
    ("json", b'{"label": 1.5}', "has no label"), ("json", b'{"label": [1]}', "has no label"),
    ("json", b'{"class": 1}', "has no label"),
])  # fmt: skip
def test_labels_that_are_none(tmp_path, suffix, data, said):
    write_shard(tmp_path / "val-0.tar", [("7.png", b""), (f"7.{suffix}", data)])
    with pytest.raises(DataError, match=said):
        read_all(opened(tmp_path))


# Evaluation and verification


@functools.cache
def png(n: int) -> bytes:
    """An image of noise, another one for each n."""
    pixels = np.random.default_rng(n).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((32, 32)).save(file, "PNG")
    return file.getvalue()


def memorised(config: Path, path: Path) -> None:
    """Saves a model that is right about the images of `png`, and about nothing else."""
    cfg = load_config(config)
    torch.manual_seed(0)
    model = create_task(cfg).build_model(3).eval()
    transform = eval_transform(cfg.DATA.IMG_SIZE, cfg.DATA.INTERPOLATION, cfg.TEST.CROP_PCT)
    pictures = [transform.picture(decode_image(io.BytesIO(png(n)))).pixels for n in range(COUNT)]
    mean, std = (torch.tensor(values) for values in (cfg.DATA.MEAN, cfg.DATA.STD))
    pixels = torch.stack([torch.as_tensor(picture) for picture in pictures]).float() / 255
    images = ((pixels - mean) / std).permute(0, 3, 1, 2)
    with torch.no_grad():
        features = model.forward_head(model.forward_features(images), pre_logits=True)
        features = torch.cat([features, torch.ones(COUNT, 1)], dim=1).double()
        targets = torch.eye(3, dtype=torch.float64)[[n % 3 for n in range(COUNT)]]
        fitted = torch.linalg.lstsq(features, targets, driver="gelsd").solution.float()
        model.get_classifier().weight.copy_(fitted[:-1].T)
        model.get_classifier().bias.copy_(fitted[-1])
    torch.save({"model": model.state_dict(), "classes": ["0", "1", "2"]}, path)


def test_evaluation_of_shards_with_masks(write_config, tmp_path, capfd):
    def accuracy(folder: str, layout: list[str], *opts) -> tuple[float, int]:
        members = members_of(layout, png)
        members = [(name, png(0) if data == b"none of it" else data) for name, data in members]
        write_shard(tmp_path / folder / "val-0.tar", members)
        arguments = ["DATA.DATA_PATH", tmp_path / folder, *opts]
        run("--cfg", config, "--eval", "--resume", tmp_path / "x.pth", "--opts", *arguments)
        found = json.loads((tmp_path / "output/fat_tiny/default/eval.json").read_text())
        return found["raw"]["acc1"], found["num_images"]

    config = write_config(DATA={"DATASET": "wds"}, MODEL={"NUM_CLASSES": 3})
    memorised(config, tmp_path / "x.pth")
    assert accuracy("first", LAYOUTS["mask first"]) == (100, COUNT)
    assert accuracy("dots", LAYOUTS["dots and mask"]) == (100, COUNT)
    assert "is taken to be" not in capfd.readouterr().out
    assert accuracy("long", LAYOUTS["long suffix"]) == (100, COUNT)
    assert "the image of 0 is taken to be its member image.jpg, likewise in other samples" in capfd.readouterr().out
    two = ["{n}.mask.png", "*{n}.rgb.png", "{n}.cls"]
    write_shard(tmp_path / "two/val-0.tar", members_of(two, png))
    path = ["--opts", "DATA.DATA_PATH", tmp_path / "two"]
    error = error_of("--cfg", config, "--eval", "--resume", tmp_path / "x.pth", *path)
    assert error.status == 2 and "has several images, mask.png, rgb.png; choose one in DATA" in str(error)
    assert accuracy("two", two, "DATA.COLUMNS", "[rgb.png,cls]") == (100, COUNT)
    assert accuracy("two", two, "DATA.COLUMNS", "[mask.png,cls]")[0] < 50  # they are all the same image


def test_evaluation_sets_take_the_members_that_columns_name(write_config, tmp_path):
    """The mask is chosen: the figures are not those of the images."""
    layout = ["{n}.mask.png", "{n}.rgb.png", "{n}.cls"]
    members = [
        (name.format(n=n), png(n % 3 if "rgb" in name else 0) if "png" in name else b"%d" % (n % 3))
        for n in range(30)
        for name in layout
    ]
    write_shard(tmp_path / "data/val-0.tar", members)
    config = write_config(DATA={"DATASET": "wds", "DATA_PATH": str(tmp_path / "data"), "COLUMNS": ["rgb.png", "cls"]})
    memorised(config, tmp_path / "best.pth")
    (tmp_path / "sets.yaml").write_text("mine: {path: val, format: wds, folders: names}")
    sets = ["TEST.SETS", "[mine]", "TEST.SETS_FILE", tmp_path / "sets.yaml"]
    accuracies = []
    for image in ("rgb.png", "mask.png"):
        columns = ["DATA.COLUMNS", f"[{image}, cls]", "TAG", image.partition(".")[0]]
        run("--cfg", config, "--eval", "--resume", tmp_path / "best.pth", "--opts", *sets, *columns)
        found = json.loads((tmp_path / f"output/fat_tiny/{columns[-1]}/eval/mine.json").read_text())
        accuracies.append(found["acc1"])
    assert accuracies[0] == 100.0 and accuracies[1] < 50.0


def test_verify_has_the_same_rule(digits, tmp_path):
    """What is left out is said; a sample that is not right is named, and the others are read."""
    prepare_data.main(["shards", str(digits), "--output", str(tmp_path), "--workers", "0", "--splits", "val"])
    with tarfile.open(tmp_path / "val-000000.tar") as archive:
        members = [(member.name, archive.extractfile(member).read()) for member in archive]
    before = verify.verify(tmp_path, "shards", workers=0)
    assert not before["problems"] and before["splits"]["val"]["images"] == 29

    def verified(members, sha256: str = "") -> dict:
        write_shard(tmp_path / "val-000000.tar", members)
        info = json.loads((tmp_path / "_info.json").read_text())
        info["splits"]["val"]["shard_bytes"] = [(tmp_path / "val-000000.tar").stat().st_size]
        info["splits"]["val"]["shard_sha256"] = [sha256 or sha256_of(tmp_path / "val-000000.tar")]
        (tmp_path / "_info.json").write_text(json.dumps(info))
        return verify.verify(tmp_path, "shards", workers=0)

    assert verified(members, "0" * 64)["problems"] == [
        f"{tmp_path}/val-000000.tar: has another SHA-256 than _info.json says"
    ]
    hidden = [(f"._{name}", b"of macOS") for name, _ in members[:3]]
    found = verified([*hidden, *members])
    assert found["splits"] == before["splits"] and not found["problems"]
    assert len(found["notes"]) == 1 and f": 3 (such as ._{members[0][0]})" in found["notes"][0]
    image = next(name for name, _ in members if name.endswith(".png"))
    found = verified([(image.replace(".png", ".mask.png"), b"mask"), *members])
    assert found["splits"] == before["splits"] and not found["problems"]
    found = verified([(image.replace(".png", ".jpg"), b"x"), *members])
    assert found["splits"]["val"]["images"] == 28
    assert "has several images, jpg, png; choose one" in found["problems"][0]
