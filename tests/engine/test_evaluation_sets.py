"""Evaluation sets: the right labels, the right figures, the same files however the work is split."""

import csv
import importlib.util
import io
import json
import random
import shutil

import numpy as np
import pytest
import torch
import yaml
from PIL import Image, ImageFilter
from timm.data import ImageNetInfo, create_transform

from conftest import ROOT, SMALLEST, error_of, launch, load, rest, run, smallest_model
from data.class_maps import read_class_map
from data.corruptions import CorruptedSource, corrupt, failure_of
from data.sources import open_source
from engine.evaluation.sets.open import SetsOpening, _subset, label_folders, match_labels, open_sets
from engine.evaluation.sets.predictions import Predictions
from engine.evaluation.sets.spec import SetSpec, read_sets
from engine.evaluation.sets.tables import PUBLISHED, is_imagenet, meanings, table
from near import same_predictions, same_set
from utils.errors import ConfigError, DataError
from utils.metrics import MACRO, calibration, corruption_errors
from utils.rng import derive_seed

NAMES = ["zero", "one", "two", "three", "four", "five"]  # of the digits; sorted, other labels than the digits
CLASSES = sorted(NAMES)
made = pytest.mark.skipif(
    not importlib.util.find_spec("imagecorruptions"), reason="imagecorruptions-imaug is not installed"
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Six digits: 120 training and 47 validation images, whose file names are all different, and sets made of these."""
    from make_quickstart_data import digits

    root = tmp_path_factory.mktemp("sets")
    wanted = {(split, str(n)): 20 if split == "train" else 8 - (n == 5) for split in ("train", "val") for n in range(6)}
    number = 0
    for split, label, _, image in digits():
        if wanted.get((split, label), 0):
            wanted[split, label] -= 1
            number += 1
            _save(image, root / split / NAMES[int(label)] / f"img_{number:04d}.png")
    rng = np.random.default_rng(0)
    for path in images_of(root / "val"):
        image, name = Image.open(path), path.parent.name
        _save(image.filter(ImageFilter.GaussianBlur(0.4)), root / "numbered" / str(CLASSES.index(name)) / path.name)
        _save(image.rotate(10), root / "listed" / name.upper() / path.name)
        if name in ("two", "zero", "five"):
            _save(image.rotate(-10), root / "few" / name / path.name)
        for severity in (1, 2):
            noise = np.asarray(image) + rng.normal(scale=40 * severity, size=(8, 8))
            _save(
                Image.fromarray(np.uint8(noise.clip(0, 255))), root / f"c/grouped/noise/{severity}" / name / path.name
            )
            _save(image.point(lambda level: level // (2 * severity)), root / f"c/dark/{severity}" / name / path.name)
            _save(image.transpose(Image.Transpose.ROTATE_90), root / f"c/grouped/turned/{severity}" / name / path.name)
    return root


def _save(image, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def images_of(folder):
    return sorted(folder.rglob("*.png"))


@pytest.fixture(scope="module")
def labels():
    """Several right labels for the validation images by file name, in another order; every fifth has none."""
    return {
        f"img_{n:04d}.png": [] if n % 5 == 0 else [n % 6, (n * n + 1) % 6]
        for n in random.Random(0).sample(range(1, 400), 399)
    }


@pytest.fixture(scope="module")
def sets_file(data, labels):
    (data / "many.json").write_text(json.dumps(labels))
    (data / "names.txt").write_text("".join(f"{name.upper()}\n" for name in CLASSES))
    sets = {
        "numbered": {"path": "numbered", "folders": "numbers", "images": 47},
        "listed": {"path": "listed", "folders": "names.txt"},
        "few": {"path": "few", "only": ["zero", "five", "two"]},
        "many": {"of": "val", "labels": "many.json"},
        "about_few": {"of": "few", "labels": "many.json"},
        "c": {"path": "c", "severities": [1, 2], "corruptions": {"noise": 0.8, "dark": 0.5}, "extra": {"turned": 0.9}},
    }
    path = data / "sets.yaml"
    path.write_text(yaml.safe_dump(sets))
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, data):
    """Weights that have learnt something, with an average that is worse."""
    folder = tmp_path_factory.mktemp("run")
    config = {
        "DEVICE": "cpu", "SEED": 0, "OUTPUT": str(folder),
        "DATA": {"DATASET": "folder", "DATA_PATH": str(data), "IMG_SIZE": 32, "BATCH_SIZE": 8, "NUM_WORKERS": 0},
        "MODEL": {"NAME": "fat_tiny", "FAT": dict(SMALLEST)}, "EMA": {"ENABLED": True, "DECAY": 0.95},
        "TRAIN": {"EPOCHS": 3, "WARMUP_EPOCHS": 0, "BASE_LR": 0.05},
        "AUG": {"HFLIP": 0.0, "SCALE": [0.8, 1.0], "AUTO_AUGMENT": "none", "COLOR_JITTER": 0.0, "REPROB": 0.0, "MIXUP": 0.0, "CUTMIX": 0.0},
    }  # fmt: skip
    (folder / "small.yaml").write_text(yaml.safe_dump(config))
    run("--cfg", folder / "small.yaml")
    return folder / "fat_tiny/default/last.pth"


@pytest.fixture
def evaluate(tmp_path, checkpoint, sets_file):
    """Evaluates on sets into a folder of its own; returns that."""

    def start(*names, tag="x", world_size=1, **opts):
        arguments = arguments_for(tmp_path, checkpoint, sets_file, names, tag, opts)
        launch(world_size, *arguments) if world_size > 1 else run(*arguments)
        return tmp_path / "fat_tiny" / tag / "eval"

    return start


def arguments_for(output, checkpoint, sets_file, names, tag="x", opts=()):
    config = checkpoint.parent.parent.parent / "small.yaml"
    given = {"TEST.SETS": f"[{', '.join(names)}]", "TEST.SETS_FILE": sets_file, **dict(opts)}
    return [
        "--cfg",
        config,
        "--eval",
        "--resume",
        checkpoint,
        "--output",
        output,
        "--tag",
        tag,
        "--opts",
        *sum(given.items(), ()),
    ]


def read(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def logits_of(checkpoint, files, weights="model", crop_pct=0.875):
    """One image at a time, by timm alone."""
    model = smallest_model(num_classes=6).eval()
    model.load_state_dict(load(checkpoint)[weights])
    transform = create_transform(
        32, interpolation="bicubic", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), crop_pct=crop_pct
    )
    with torch.no_grad():
        return np.array([model(transform(Image.open(file).convert("RGB"))[None])[0].double().numpy() for file in files])


def expected_ece(probabilities, correct):
    """By its definition, a loop over the bins."""
    total = 0.0
    for i in range(15):
        inside = [(p, c) for p, c in zip(probabilities, correct) if i / 15 < p <= (i + 1) / 15]
        if inside:
            total += abs(np.mean([p for p, _ in inside]) - np.mean([c for _, c in inside])) * len(inside)
    return 100 * total / len(probabilities)


# Figures


@pytest.mark.parametrize("name, label_of", [
    ("numbered", lambda folder: int(folder)),
    ("listed", lambda folder: CLASSES.index(folder.lower())),
])  # fmt: skip
def test_figures_are_right(evaluate, data, checkpoint, name, label_of):
    folder = evaluate(name)
    files = images_of(data / name)
    targets = np.array([label_of(file.parent.name) for file in files])
    logits = logits_of(
        checkpoint, files, "ema" if json.loads((folder / f"{name}.json").read_text())["weights"] == "ema" else "model"
    )
    order = np.argsort(-logits, axis=1)
    hits = order[:, :5] == targets[:, None]
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    found = json.loads((folder / f"{name}.json").read_text())
    assert found["acc1"] == pytest.approx(100 * hits[:, 0].mean()) and found["acc5"] == pytest.approx(
        100 * hits.any(axis=1).mean()
    )
    assert 10 < found["acc1"] < 100 and 50 < found["acc5"]
    assert found["loss"] == pytest.approx(-np.log(shares[range(47), targets]).mean(), abs=2e-6)
    assert found["ece"] == pytest.approx(expected_ece(shares.max(axis=1), hits[:, 0]), abs=1e-3)
    assert sum(bin_["images"] for bin_ in found["reliability"]) == found["num_images"] == 47
    assert (
        found["complete"]
        and found["path"] == str(data / name)
        and found["checkpoint"] == str(checkpoint)
        and found["precision"]
    )

    rows = read(folder / f"{name}_predictions.csv")
    assert [row["image"] for row in rows] == [str(file.relative_to(data / name)) for file in files]
    for row, own, share, target in zip(rows, order, shares, targets):
        assert row["right"] == CLASSES[target] and [row[f"top{n}"] for n in range(1, 6)] == [
            CLASSES[label] for label in own[:5]
        ]
        assert [float(row[f"probability{n}"]) for n in range(1, 6)] == pytest.approx(share[own[:5]], abs=6e-5)
    classes = read(folder / f"{name}_classes.csv")
    assert [row["class"] for row in classes] == CLASSES and sum(int(row["images"]) for row in classes) == 47
    for label, row in enumerate(classes):
        assert float(row["acc1"]) == pytest.approx(100 * hits[targets == label, 0].mean(), abs=1e-4)
        assert float(row["acc5"]) == pytest.approx(100 * hits[targets == label].any(axis=1).mean(), abs=1e-4)
    pairs = {(row["class"], row["predicted"]): int(row["images"]) for row in read(folder / f"{name}_confusions.csv")}
    wrong = [(CLASSES[t], CLASSES[p]) for t, p in zip(targets, order[:, 0]) if t != p]
    assert pairs == {pair: wrong.count(pair) for pair in wrong} and list(pairs.values()) == sorted(
        pairs.values(), reverse=True
    )


def test_validation_is_the_plain_evaluation(evaluate, tmp_path, checkpoint, sets_file):
    """To the last digit, with both weights; and a plain one writes what it wrote before."""
    folder = evaluate("val", "numbered")
    beside = json.loads((folder.parent / "eval.json").read_text())
    plain = arguments_for(tmp_path, checkpoint, sets_file, [], "plain")
    run(*plain[:-5])
    expected = json.loads((tmp_path / "fat_tiny/plain/eval.json").read_text())
    assert beside == expected and not (tmp_path / "fat_tiny/plain/eval").exists()
    assert list(expected) == [
        *(
            "acc1",
            "acc5",
            "loss",
            "num_images",
            *(metric.key for metric in MACRO),
            "weights",
            "raw",
            "ema",
            "dataset",
            "data_path",
            "crop_pct",
            "crop_mode",
            "complete",
        ),
        *("checkpoint", "precision", "engine", "fused", "img_size", "crops", "flip", "cell", "classes", "imagenet"),
    ]
    found = json.loads((folder / "val.json").read_text())
    better = max(("raw", "ema"), key=lambda name: (expected[name]["acc1"], name == "raw"))
    for name in ("raw", "ema"):
        assert found[name] == expected[name]
    assert expected["raw"] != expected["ema"]
    assert {key: found[key] for key in expected[better]} == expected[better] and found["weights"] == better
    assert json.loads((folder / "numbered.json").read_text())["weights"] == better


@pytest.mark.parametrize("others", [
    [(3, 5, 2)], rest([(2, 8, 0), (3, 8, 2), (3, 5, 0), (1, 47, 2), (2, 1, 2)]),
], ids=["some", "more"])  # fmt: skip
def test_the_same_files_for_any_processes_batch_and_workers(evaluate, others):
    """Every count; the last digit of other figures, and at which side of a bin's edge an image lies, can hang on its batch."""
    names = ["val", "numbered", "few", "many", "c"]
    texts = []
    for world_size, batch_size, workers in [(1, 8, 0), *others]:
        folder = evaluate(*names, world_size=world_size, **{"DATA.BATCH_SIZE": batch_size, "DATA.NUM_WORKERS": workers})
        texts.append({path.name: path.read_bytes() for path in folder.iterdir()})
        shutil.rmtree(folder)
    kinds = (".json", "_classes.csv", "_confusions.csv", "_predictions.csv")
    first, others = texts[0], texts[1:]
    assert set(first) == {f"{name}{kind}" for name in names for kind in kinds} | {"table.md"}
    for other in others:
        assert set(other) == set(first)
        for name in names:
            assert same_set(other[f"{name}.json"], first[f"{name}.json"], first[f"{name}_predictions.csv"]), name
            assert same_predictions(other[f"{name}_predictions.csv"], first[f"{name}_predictions.csv"]), name
        for file in ("table.md", *(f"{name}{kind}" for name in names for kind in ("_classes.csv", "_confusions.csv"))):
            assert other[file] == first[file], file


def test_what_the_comparison_of_files_lets_through():
    """An image at a bin's edge may lie on either side, and the last digit may differ; else nothing."""
    confidences = np.array([0.2, 0.9, 0.41234, 0.5, 0.7])
    left, right = (np.float32(confidences) + np.float32([shift, 0, 1e-7, 0, 0]) for shift in (-1e-6, 1e-6))
    correct = np.array([True, True, False, True, False])
    predictions = "image,probability1\n" + "".join(f"x,{value:.4f}\n" for value in confidences)

    def same(one, other, **changed):
        sets = [
            {"num_images": 5, "acc1": 60.0, "loss": 0.5, **calibration(values, hits)} for values, hits in (one, other)
        ]
        return same_set(
            *(json.dumps(figures).encode() for figures in (sets[0], {**sets[1], **changed})), predictions.encode()
        )

    a, b = (left, correct), (right, correct)
    assert calibration(*a) != calibration(*b) and same(a, b) and same(a, b, loss=0.500001)
    assert (
        not same(a, b, loss=0.50001)
        and not same(a, b, acc1=60.1)
        and not same(a, b, ece=0.0)
        and not same(a, b, num_images=6)
    )
    assert not same(a, (right, ~correct)) and not same(a, (right + np.float32([0, 0.001, 0, 0, 0]), correct))
    table = "image,right,top1,top2,probability1,probability2\nx,a,{},{},{},{}\n"
    files = [table.format(*row).encode() for row in (
        ("a", "b", 0.5, 0.5), ("b", "a", 0.5, 0.5), ("a", "b", 0.5001, 0.4999), ("a", "b", 0.6, 0.4), ("b", "a", 0.6, 0.4)
    )]  # fmt: skip
    assert same_predictions(files[0], files[1]) and same_predictions(files[0], files[2])
    assert not same_predictions(files[0], files[3]) and not same_predictions(files[3], files[4])


def test_only_some_classes_to_choose_among(evaluate, data, checkpoint):
    folder = evaluate("few")
    found = json.loads((folder / "few.json").read_text())
    files = images_of(data / "few")
    subset = sorted(CLASSES.index(name) for name in ("zero", "five", "two"))
    logits = logits_of(checkpoint, files, {"raw": "model", "ema": "ema"}[found["weights"]])
    targets = np.array([CLASSES.index(file.parent.name) for file in files])
    best = np.array(subset)[logits[:, subset].argmax(axis=1)]
    assert (
        found["acc1"] == pytest.approx(100 * (best == targets).mean())
        and found["classes"] == 3
        and found["num_images"] == 23
    )
    assert (best != logits.argmax(axis=1)).any()  # else this would show nothing
    shares = np.exp(logits[:, subset]) / np.exp(logits[:, subset]).sum(axis=1, keepdims=True)
    places = np.array([subset.index(target) for target in targets])
    assert found["loss"] == pytest.approx(-np.log(shares[range(23), places]).mean(), abs=2e-6)
    rows = read(folder / "few_predictions.csv")
    assert {row[f"top{n}"] for row in rows for n in (1, 2, 3)} == {"zero", "five", "two"} and "top4" not in rows[0]
    assert [float(row["probability1"]) for row in rows] == pytest.approx(shares.max(axis=1), abs=6e-5)


def test_labels_by_file_name(evaluate, data, checkpoint, labels):
    folder = evaluate("val", "many", "about_few")
    weights = {"raw": "model", "ema": "ema"}[json.loads((folder / "many.json").read_text())["weights"]]
    for name, files, width in (("many", images_of(data / "val"), 6), ("about_few", images_of(data / "few"), 3)):
        found = json.loads((folder / f"{name}.json").read_text())
        logits = logits_of(checkpoint, files, weights)
        if width == 3:
            logits[:, [CLASSES.index(n) for n in ("four", "one", "three")]] = -np.inf
        order = np.argsort(-logits, axis=1)[:, : min(5, width)]
        counted = [(top, labels[file.name]) for top, file in zip(order, files) if labels[file.name]]
        assert found["num_images"] == len(counted) < len(files) and found["not_counted"] == len(files) - len(counted)
        assert found["acc1"] == pytest.approx(100 * np.mean([top[0] in right for top, right in counted]))
        assert found["acc5"] == pytest.approx(100 * np.mean([bool(set(top) & set(right)) for top, right in counted]))
        assert found["complete"] and 0 < found["acc1"] < 100
        rows = read(folder / f"{name}_predictions.csv")
        assert {row["image"].split("/")[1]: row["right"] for row in rows} == {
            file.name: "|".join(CLASSES[label] for label in labels[file.name]) for file in files if labels[file.name]
        }


def test_labels_need_no_second_run_of_the_model(evaluate, monkeypatch):
    import engine.inference.examination

    seen = []
    original = engine.inference.examination.evaluate
    monkeypatch.setattr(
        engine.inference.examination,
        "evaluate",
        lambda *args, **named: seen.append(args[2].num_images) or original(*args, **named),
    )
    folder = evaluate("many")
    assert seen == [47]
    assert {path.name.split("_")[0].split(".")[0] for path in folder.iterdir()} == {"many", "table"}
    assert not (folder.parent / "eval.json").exists()


def test_labels_by_class_and_file_name(tmp_path):
    class Source:
        keys = ["a/1.png", "b/1.png", "b/2.png"]
        key = keys.__getitem__

        def __len__(self):
            return 3

    (tmp_path / "labels.json").write_text(json.dumps({"b/1.png": [1], "2.png": [0, 2], "1.png": [2]}))
    spec = SetSpec(name="x", of="val", labels="labels.json", file=tmp_path / "sets.yaml")
    assert match_labels(spec, Source(), ["a", "b", "c"]) == {"a/1.png": [2], "b/1.png": [1], "b/2.png": [0, 2]}
    (tmp_path / "labels.json").write_text(json.dumps({"2.png": [0, 2], "1.png": [2]}))
    with pytest.raises(DataError, match="names '1.png', but there are several images of that name in 'val'"):
        match_labels(spec, Source(), ["a", "b", "c"])


# Corruptions


def test_corruptions_in_folders(evaluate, data, checkpoint):
    folder = evaluate("c", **{"TEST.CROP_PCT": 1.0})
    found = json.loads((folder / "c.json").read_text())
    weights = {"raw": "model", "ema": "ema"}[found["weights"]]
    errors = {}
    for part in ("grouped/noise", "dark", "grouped/turned"):
        for severity in (1, 2):
            files = images_of(data / f"c/{part}/{severity}")
            best = logits_of(checkpoint, files, weights, 1.0).argmax(axis=1)
            wrong = [CLASSES[label] != file.parent.name for label, file in zip(best, files)]
            errors.setdefault(part.split("/")[-1], []).append(np.mean(wrong))
    noise, dark, turned = (
        100 * np.mean(errors[name]) / base for name, base in (("noise", 0.8), ("dark", 0.5), ("turned", 0.9))
    )
    assert found["corruption_errors"] == {"noise": pytest.approx(noise), "dark": pytest.approx(dark)}
    assert found["extra_corruption_errors"] == {"turned": pytest.approx(turned)} and found["mce"] == pytest.approx(
        (noise + dark) / 2
    )
    assert found["complete"] and found["num_images"] == 4 * 47 and len({noise, dark, turned}) == 3
    assert found["acc1"] == pytest.approx(100 - 100 * np.mean(errors["noise"] + errors["dark"]))
    assert {row["image"].rsplit("/", 2)[0] for row in read(folder / "c_predictions.csv")} == {
        f"{name}/{severity}" for name in ("noise", "dark", "turned") for severity in (1, 2)
    }
    assert f"| {found['mce']:.2f} " in (folder / "table.md").read_text()


def test_a_corruption_that_is_not_there_is_no_zero(evaluate, data, sets_file, tmp_path, capsys):
    shutil.copytree(data / "c", tmp_path / "data/c", ignore=shutil.ignore_patterns("noise"))
    sets = yaml.safe_load(sets_file.read_text())
    sets["c"]["path"] = str(tmp_path / "data/c")  # a path from the root leads there, too
    (tmp_path / "sets.yaml").write_text(yaml.safe_dump(sets))
    folder = evaluate("c", **{"TEST.SETS_FILE": tmp_path / "sets.yaml"})
    found = json.loads((folder / "c.json").read_text())
    assert (
        found["mce"] is None and found["corruption_errors"]["noise"] is None and found["corruption_errors"]["dark"] > 0
    )
    assert not found["complete"] and "noise/1" in found["not_measured"]["noise"]
    assert "| - * " in (folder / "table.md").read_text() and "not of the whole set" in capsys.readouterr().out


def test_mean_corruption_error_by_hand():
    """(0.2 + 0.4) / 2 / 0.6 = 0.5 and (0.9 + 0.6) / 2 / 0.5 = 1.5, so 100."""
    errors = {"a": {1: 0.2, 2: 0.4}, "b": {1: 0.9, 2: 0.6}, "c": {1: 1.0, 2: 1.0}}
    each, mean = corruption_errors(errors, {"a": 0.6, "b": 0.5}, [1, 2])
    assert each == {"a": pytest.approx(50), "b": pytest.approx(150)} and mean == pytest.approx(100)
    assert corruption_errors({"a": {1: 0.2}, "b": errors["b"]}, {"a": 0.6, "b": 0.5}, [1, 2]) == (
        {"a": None, "b": pytest.approx(150)},
        None,
    )
    spec = read_sets("", ["c"])["c"]
    alexnet = {name: dict.fromkeys(range(1, 6), error) for name, error in spec.corrupted.corruptions.items()}
    assert corruption_errors(alexnet, spec.corrupted.corruptions, spec.corrupted.severities)[1] == pytest.approx(100)
    assert len(spec.corrupted.corruptions) == 15 and len(spec.corrupted.extra) == 4 and spec.crop_pct == 1.0
    assert (spec.corrupted.corruptions["gaussian_noise"], spec.corrupted.corruptions["jpeg_compression"]) == (
        0.886428,
        0.6065,
    )


def test_corruptions_are_made_of_rgb_images(tmp_path):
    with pytest.raises(ConfigError, match="made of RGB images, but DATA.IN_CHANS is 1; lay out .*imagenet-c"):
        open_sets(read_sets("", ["c"]), SetsOpening(None, None, ["0"], str(tmp_path), in_chans=1))


@made
@pytest.mark.parametrize("severities", [(1, 5), rest((1, 2, 3, 4, 5))], ids=len)
def test_corruptions_that_are_made(severities):
    """Each of the 19 changes a photo, at the highest severity more, and gives the same pixels for the same seed."""
    from sklearn.datasets import load_sample_image

    photo = Image.fromarray(load_sample_image("china.jpg")).crop((200, 100, 424, 324))
    spec = read_sets("", ["c"])["c"]
    assert spec.corrupted.severities == [1, 2, 3, 4, 5]
    fixed = {
        "defocus_blur",
        "zoom_blur",
        "brightness",
        "contrast",
        "pixelate",
        "jpeg_compression",
        "gaussian_blur",
        "saturate",
    }
    for name in [*spec.corrupted.corruptions, *spec.corrupted.extra]:
        changes = []
        for severity in severities:
            assert failure_of(name, severity) is None, name
            state = np.random.get_state()[1].copy()
            first, again, other = (np.asarray(corrupt(photo, name, severity, seed)) for seed in (1, 1, 2))
            assert (np.random.get_state()[1] == state).all()
            assert (first == again).all() and first.shape == (224, 224, 3) and first.dtype == np.uint8, name
            assert (first == other).all() == (name in fixed), name
            changes.append(np.abs(first - np.float32(photo)).mean())
        assert 0.3 < changes[0] < changes[-1], name


@made
def test_images_that_are_made_do_not_depend_on_the_split(evaluate, data, tmp_path):
    """Of two images of each class: each is made in several tenths of a second."""
    for name in NAMES:
        for path in images_of(data / "val" / name)[:2]:
            _save(Image.open(path), tmp_path / "data/val" / name / path.name)
    names = {"shot_noise": 0.9, "contrast": 0.7}
    sets = tmp_path / "made.yaml"
    sets.write_text(yaml.safe_dump({"made": {"path": "nowhere", "generate": True, "severities": [1, 4], "crop_pct": 1.0,
                                             "corruptions": names, "extra": {"snow": 0.8}}}))  # fmt: skip
    texts = []
    for world_size, batch_size, workers in [(1, 8, 0), (2, 5, 2), (3, 8, 0)]:
        opts = {"TEST.SETS_FILE": sets, "DATA.DATA_PATH": tmp_path / "data"}
        opts |= {"DATA.BATCH_SIZE": batch_size, "DATA.NUM_WORKERS": workers}
        folder = evaluate("made", world_size=world_size, **opts)
        texts.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert texts[1] == texts[0] and texts[2] == texts[0]
    found = json.loads(texts[0]["made.json"])
    assert found["path"] == "made from the validation images by imagecorruptions-imaug==1.1.5" and found["complete"]
    assert set(found["parts"]) == {f"{name}/{severity}" for name in [*names, "snow"] for severity in (1, 4)}
    assert "not the published images" in texts[0]["table.md"].decode()


@made
def test_the_images_that_are_made(data):
    """Resized, cropped, corrupted with a seed of their own, compressed, and nothing else."""
    source = open_source("folder", "val", str(data))
    for index in (0, 1):
        image, label = source.load(index)
        seed = derive_seed(source.key(index), "gaussian_noise", 3)
        file = io.BytesIO()
        clean = image.resize((256, 256), Image.Resampling.BILINEAR).crop((16, 16, 240, 240))
        corrupt(clean, "gaussian_noise", 3, seed).save(file, "JPEG", quality=85)
        found = CorruptedSource(source, "gaussian_noise", 3).load(index)
        assert (
            (np.asarray(found[0]) == np.asarray(Image.open(file))).all()
            and found[1] == label
            and found[0].mode == "RGB"
        )


@made
def test_a_corruption_that_cannot_be_made_is_named_and_no_zero(evaluate, tmp_path, monkeypatch):
    import imagecorruptions

    monkeypatch.setitem(imagecorruptions.corruption_dict, "fog", lambda image, severity: 1 / 0)
    sets = tmp_path / "made.yaml"
    sets.write_text(
        yaml.safe_dump(
            {
                "made": {
                    "path": "nowhere",
                    "generate": True,
                    "severities": [1],
                    "corruptions": {"fog": 0.8, "contrast": 0.5},
                }
            }
        )
    )
    found = json.loads((evaluate("made", **{"TEST.SETS_FILE": sets}) / "made.json").read_text())
    assert (
        found["not_measured"] == {"fog": "ZeroDivisionError: division by zero"}
        and found["mce"] is None
        and not found["complete"]
    )
    assert (
        found["corruption_errors"]["fog"] is None
        and found["corruption_errors"]["contrast"] > 0
        and found["num_images"] == 47
    )


# Calibration


def test_calibration_by_definition():
    rng = np.random.default_rng(1)
    confidences = rng.uniform(size=1000).astype(np.float32)
    correct = rng.uniform(size=1000) < confidences**2
    found = calibration(confidences, correct)
    assert (
        found["ece"] == pytest.approx(expected_ece(confidences.astype(float), correct), abs=1e-3) and found["ece"] > 5
    )
    assert len(found["reliability"]) == 15 and found["reliability"][14]["to"] == 1.0
    edges = calibration(np.array([1 / 3, 1.0, 0.99]), np.array([True, True, False]), bins=3)
    assert [row["images"] for row in edges["reliability"]] == [1, 0, 2]
    assert [row["accuracy"] for row in edges["reliability"]] == [100.0, None, 50.0]
    assert edges["ece"] == pytest.approx(100 * (2 / 3 + 0.99) / 3, abs=1e-3)


def test_a_subset_s_labels_are_the_model_s():
    predictions = Predictions(torch.device("cpu"), [1, 3, 4], 6)
    predictions.update(torch.tensor([[9.0, 1, 8, 3, 2, 9], [9, 5, 8, 3, 6, 9]]), torch.tensor([4, 4]), ["b", "a"])
    records = predictions.records().in_order()
    assert (
        records.keys == ["a", "b"]
        and records.top.tolist() == [[4, 1, 3], [3, 4, 1]]
        and records.targets.tolist() == [4, 4]
    )
    assert predictions.compute()["acc1"] == 50.0 and len(Predictions(torch.device("cpu"), None, 6).records()) == 0


# Real sets' classes


def test_class_lists_of_the_real_sets():
    classes = ImageNetInfo("imagenet-1k").label_names()
    specs = read_sets("", ["a", "r", "v2", "real", "sketch"])
    a, r = (_subset(specs[name], classes) for name in ("a", "r"))
    assert len(a) == len(r) == len(set(a)) == 200 and classes[6] == "n01498041" and a[0] == 6
    assert a[:5] == [6, 11, 13, 15, 17] and a[-1] == 988 and r[:5] == [1, 2, 4, 6, 8] and r[-1] == 988
    assert list(read_class_map("imagenet_a_synsets"))[0] == "n01498041" and meanings(classes)[6] == "stingray"
    assert label_folders(specs["a"], ["n01498041", "n01531178"], classes, a) == [6, 11]
    folders = sorted(map(str, range(1000)))
    assert folders[2] == "10" and label_folders(specs["v2"], folders, classes, None) == [int(name) for name in folders]
    assert label_folders(specs["sketch"], ["n01440764", "n15075141"], classes, None) == [0, 999]
    with pytest.raises(DataError, match="'n01440764' is no class that `only` names"):
        label_folders(specs["a"], ["n01440764"], classes, a)
    with pytest.raises(DataError, match="imagenetv2.*'1000' is no label from 0 to 999"):
        label_folders(specs["v2"], ["7", "1000"], classes, None)
    with pytest.raises(DataError, match="'007' is the same class as '7'"):
        label_folders(specs["v2"], ["7", "007"], classes, None)


def test_real_labels_belong_to_file_names():
    """The first image's set is empty, the second's two labels; as in reassessed-imagenet's real.json."""

    class Source:
        keys = [f"n0000000{n % 3}/ILSVRC2012_val_{n:08d}.JPEG" for n in range(50000, 0, -1)]
        key = keys.__getitem__

        def __len__(self):
            return 50000

    spec = read_sets("", ["real"])["real"]
    found = match_labels(spec, Source(), ImageNetInfo("imagenet-1k").label_names())
    assert [found[key] for key in Source.keys[:-5:-1]] == [[], [970, 795], [230, 231], [809]]
    assert sum(map(bool, found.values())) == spec.expected.images == 46837


def test_imagenet_s_numbers_for_a_model_with_more_classes_in_another_order():
    """ImageNet-V2's folders and ReaL's labels count ImageNet-1k's classes, whatever the model's labels are."""

    class Source:
        key = "n01440764/ILSVRC2012_val_00000002.JPEG n01440764/ILSVRC2012_val_00000003.JPEG".split().__getitem__

        def __len__(self):
            return 2

    specs, named = read_sets("", ["v2", "real"]), ImageNetInfo("imagenet-1k").label_names()
    classes = list(read_class_map("imagenet-22k-ms"))
    assert [classes[label] for label in label_folders(specs["v2"], ["7", "10", "999"], classes, None)] == [
        named[7],
        named[10],
        named[999],
    ]
    found = match_labels(specs["real"], Source(), classes)
    assert [[classes[label] for label in labels] for labels in found.values()] == [
        [named[970], named[795]],
        [named[230], named[231]],
    ]
    with pytest.raises(DataError, match="'7' is a class that the model does not have"):
        label_folders(specs["v2"], ["7"], CLASSES, None)


def test_published_figures_beside_imagenet_s_classes_only():
    summaries = {
        "val": {"acc1": 77.0, "acc5": 93.0, "complete": True, "weights": "ema"},
        "a": {"acc1": 9.5, "complete": False, "weights": "ema"},
    }
    columns = {name: spec.expected.published for name, spec in read_sets("", ["val", "a", "r"]).items()}
    text = table("fat_b0", 4_490_000, 224, summaries, ["val", "a"], columns, imagenet=True)
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| ")
    ]
    assert lines[0] == ["model", "px", "params, M", "val top-1", "val top-5", "a top-1", "source"]
    assert lines[1] == ["fat_b0 (ema)", "224", "4.49", "77.00", "93.00", "9.50 *", "measured here"]
    assert lines[2] == ["fat_b0", "224", "4.5", "77.60", "-", "-", "[1]"]
    with open(PUBLISHED) as file:
        pvt = next(row for row in csv.DictReader(file) if row["model"] == "pvt_v2_b0")
    assert ["pvt_v2_b0.in1k", "224", "3.67", "70.65", "90.21", "4.35", "[2]"] in lines and pvt["a_top1"] == "4.347"
    assert "[1] FAT paper" in text and "[2] timm results tables" in text and "* not of the whole set" in text
    only_a = table("fat_b0", 1, 224, summaries, ["a"], columns, imagenet=True)
    assert "FAT paper" not in only_a and "pvt_v2_b0.in1k" in only_a
    other = table("fat_b0", 1, 224, summaries, ["val"], columns, imagenet=False)
    assert "pvt" not in other and "No published figures" in other
    names = ImageNetInfo("imagenet-1k").label_names()
    assert is_imagenet(names) and not is_imagenet(names[::-1]) and not is_imagenet(names[:-1])


# What goes wrong


@pytest.mark.parametrize("sets, names, message", [
    ({}, ["numberd"], "TEST.SETS: 'numberd' is in no entry of"),
    ({"numbered": {"path": "x"}}, ["numberd"], "did you mean 'numbered'?"),
    ("- a\n- b", ["a"], "describes no sets"),
    ("a: {path: [", ["a"], "is no YAML file that can be read"),
    ("a: {path: x}\na: {path: y}", ["a"], "'a' stands twice"),
    ({"a": {"pth": "x"}}, ["a"], "sets.yaml: a: unknown key pth; did you mean 'path'?"),
    ({"a": "x"}, ["a"], "a: is 'x'; it must have keys"),
    ({"a": {}}, ["a"], "a: path: is missing"),
    ({"a": {"path": 3}}, ["a"], "a.path is 3; it must be of type str"),
    ({"a": {"path": "x", "crop_pct": "much"}}, ["a"], "a.crop_pct is 'much'; it must be a number"),
    ({"a": {"path": "x", "crop_pct": 2}}, ["a"], "a: crop_pct: must be between"),
    ({"a": {"path": "x", "format": "foldr"}}, ["a"], "a: format is 'foldr'; did you mean 'folder'?"),
    ({"a": {"of": "val"}}, ["a"], "a: labels: is missing"),
    ({"a": {"of": "val", "labels": "x", "path": "y"}}, ["a"], "a: of: contradicts path"),
    ({"a": {"path": "x", "labels": "y.json"}}, ["a"], "a: labels: needs `of`"),
    ({"a": {"path": "x", "only": []}}, ["a"], "a: only: names no class"),
    ({"a" * 101: {"path": "x"}}, ["val"], "files are named after it"),
    ({"a": {"of": "val", "labels": "twice.json"}}, ["a"], "twice.json: cannot be read as JSON ('a' stands twice)"),
    ({"a": {"of": "b", "labels": "x"}}, ["a"], "a.of is 'b'; it must be val or another set"),
    ({"a": {"path": "x", "corruptions": {"fog": 0}}}, ["a"], "a: corruptions, extra: each needs a mean error"),
    ({"a": {"path": "x", "corruptions": {"a/b": 0.5}}}, ["a"], "a: corruptions, extra: must be names without '/'"),
    ({"a": {"path": "x", "corruptions": {"fog": 0.5}, "extra": {"fog": 0.5}}}, ["a"], "each once"),
    ({"a": {"path": "x", "generate": True}}, ["a"], "a: corruptions: must not be empty"),
    ({"a": {"path": "x", "severities": [1, 6]}}, ["a"], "a: severities: must be"),
    ({"val": {"path": "x"}}, ["val"], "val: is the config's own validation images"),
    ({"a/b": {"path": "x"}}, ["val"], "a/b: files are named after it"),
    ({"a": {"path": "numbered"}}, ["a"], "numbered: its folder '0' is no class"),
    ({"a": {"path": "numbered", "folders": ["x", "y"]}}, ["a"], "numbered: its folder '0' is no class"),
    ({"a": {"path": "listed", "folders": "none.txt"}}, ["a"], "a.folders is "),
    ({"a": {"path": "val", "folders": "numbers"}}, ["a"], "val: its folder 'five' is no label from 0 to 5"),
    ({"a": {"path": "val", "only": ["one", "two"]}}, ["a"], "val: its folder 'five' is no class that `only` names"),
    ({"a": {"path": "val", "only": ["one", "ten"]}}, ["a"], "a.only: has class 'ten', which the model does not have"),
    ({"a": {"path": "val", "only": "imagenet_a_synsets"}}, ["a"], "a.only: has class 'n01498041'"),
    ({"a": {"path": "x", "source": "get it there"}}, ["val", "a"], "x: no such folder, which set 'a' of TEST.SETS needs; lay it out as x/<class>/*"),
    ({"a": {"path": "x", "source": "get it there"}}, ["val", "a"], "(get it there)"),
    ({"a": {"path": "x", "corruptions": {"fog": 0.5}}}, ["a"], "lay it out as x/<corruption>/<severity>/<class>/*"),
    ({"a": {"path": "c", "corruptions": {"fog": 0.5}}}, ["a"], "c: holds none of the corruptions of set 'a'"),
    ({"a": {"of": "val", "labels": "none.json"}}, ["a"], "none.json: cannot be read as JSON (No such file"),
    ({"a": {"of": "val", "labels": "sets.yaml"}}, ["a"], "sets.yaml: cannot be read as JSON"),
    ({"a": {"of": "val", "labels": "high.json"}}, ["a"], "'img_0001.png' has labels [6], but they may be 0 to 5"),
    ({"a": {"of": "val", "labels": "odd.json"}}, ["a"], "odd.json must hold {file name: [labels]}"),
    ({"a": {"of": "val", "labels": "other.json"}}, ["a"], "other.json: has no labels for 47 of the 47 images of 'val', such as 'five/img_"),
    ({"a": {"of": "val", "labels": "imagenet_real_labels"}}, ["a"], "has labels [970, 795], not all of which the model has"),
])  # fmt: skip
def test_refused_before_anything_is_evaluated(data, checkpoint, tmp_path, monkeypatch, sets, names, message):
    (tmp_path / "high.json").write_text('{"img_0001.png": [6]}')
    (tmp_path / "odd.json").write_text('{"img_0001.png": 3}')
    (tmp_path / "twice.json").write_text('{"a": [1], "a": [2]}')
    (tmp_path / "other.json").write_text('{"x.png": [3]}')
    path = tmp_path / "sets.yaml"
    path.write_text(sets if isinstance(sets, str) else yaml.safe_dump(sets))
    import engine.inference.examination

    monkeypatch.setattr(engine.inference.examination, "evaluate", lambda *_, **__: pytest.fail("it was evaluated"))
    error = error_of(*arguments_for(tmp_path / "out", checkpoint, path, names))
    assert message in str(error) and error.status == 2
    assert not (tmp_path / "out").exists()


def test_refused_settings(checkpoint, tmp_path, sets_file):
    for given, message in (("[val, val]", "each once"), ("val", "list"), ("[1]", "names of sets")):
        error = error_of(*arguments_for(tmp_path, checkpoint, sets_file, [], opts={"TEST.SETS": given}))
        assert "TEST.SETS" in str(error) and message in str(error)
    error = error_of(*arguments_for(tmp_path, checkpoint, tmp_path / "none.yaml", ["val"]))
    assert "none.yaml: cannot be read (No such file or directory); check TEST.SETS_FILE" in str(error)


def test_the_package_for_corruptions_is_named_where_it_is_missing(checkpoint, tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "imagecorruptions", None)
    error = error_of(*arguments_for(tmp_path, checkpoint, ROOT / "configs/evaluation_sets.yaml", ["c"]))
    assert isinstance(error, ConfigError) and "pip install --no-deps imagecorruptions-imaug==1.1.5" in str(error)


def test_images_that_cannot_be_read(evaluate, data, tmp_path, checkpoint, sets_file):
    """They end it, or are left out and counted; also the set about their other labels is then not complete."""
    shutil.copytree(data / "val", tmp_path / "data/val")
    shutil.copytree(data / "numbered", tmp_path / "data/numbered")
    for folder in ("val/one", "numbered/2"):
        next(iter(sorted((tmp_path / "data" / folder).iterdir()))).write_bytes(b"")
    opts = {"DATA.DATA_PATH": tmp_path / "data"}
    error = error_of(*arguments_for(tmp_path, checkpoint, sets_file, ["numbered"], opts=opts))
    assert isinstance(error, DataError) and "numbered/2/img_" in str(error)
    folder = evaluate("val", "numbered", "many", **opts, **{"DATA.ON_ERROR": "skip"})
    for name in ("val", "numbered", "many"):
        found = json.loads((folder / f"{name}.json").read_text())
        assert not found["complete"]
        assert name == "many" or (found["num_images"], found["unreadable"]) == (46, 1)
    assert not list(folder.glob(".*"))


def test_another_number_of_images_than_there_should_be_is_said(evaluate, tmp_path, data):
    sets = tmp_path / "sets.yaml"
    sets.write_text(yaml.safe_dump({"numbered": {"path": "numbered", "folders": "numbers", "images": 48}}))
    folder = evaluate("numbered", **{"TEST.SETS_FILE": sets})
    assert (
        not json.loads((folder / "numbered.json").read_text())["complete"]
        and " * " in (folder / "table.md").read_text()
    )


def test_sets_elsewhere_fewer_images_than_processes_and_no_predictions(evaluate, data, tmp_path):
    """Three images over four processes: one has none."""
    for name in ("two", "zero", "five"):
        _save(Image.open(images_of(data / "few" / name)[0]), tmp_path / "elsewhere/few" / name / "x.png")
    folder = evaluate("few", world_size=4, **{"TEST.PREDICTIONS": False, "TEST.SETS_PATH": tmp_path / "elsewhere"})
    found = json.loads((folder / "few.json").read_text())
    assert found["path"] == str(tmp_path / "elsewhere/few") and found["num_images"] == 3
    assert {path.name for path in folder.iterdir()} == {"few.json", "few_classes.csv", "few_confusions.csv", "table.md"}
