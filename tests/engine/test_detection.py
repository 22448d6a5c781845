"""Detection as a task: training, resuming, evaluation by AP, what is shown, what is refused."""

import json
import signal

import numpy as np
import pytest
import torch
import yaml

import engine.tasks.detection
from coco_files import annotations_of, write_annotations, write_coco
from conftest import ROOT, SMALLEST_DENSE, Job, assert_same_run, error_of, kill_at_update, launch, load, rest, run
from data.object_masks import encode_masks
from engine.evaluation.average_precision import Detected, average_precision
from engine.evaluation.detection_errors import errors_in
from engine.inference.trained import load_trained
from engine.tasks import create_task
from engine.tasks.detection import Detection
from engine.training.optim import LearningRate, create_lr_scheduler
from models.detection import create_detector
from utils.config import load_config
from utils.errors import ConfigError, DataError

pytestmark = pytest.mark.usefixtures("narrow_heads")

SMALL = {
    "TASK": "detection",
    "DEVICE": "cpu",
    "PRINT_FREQ": 1,
    "DATA": {"DATASET": "coco", "IMG_SIZE": 64, "BATCH_SIZE": 2, "NUM_WORKERS": 0},
    "MODEL": {"NAME": "fat_tiny", "HEAD": "retinanet", "DROP_PATH_RATE": 0.1, "FAT": dict(SMALLEST_DENSE)},
    "DET": {"MAX_SIZE": 96},
    "TRAIN": {"EPOCHS": 2, "WARMUP_EPOCHS": 0, "WARMUP_UPDATES": 2, "BASE_LR": 0.05},
    "EMA": {"ENABLED": True, "DECAY": 0.9},
    "AUG": {"MIXUP": 0.0, "CUTMIX": 0.0},
}


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    return write_coco(tmp_path_factory.mktemp("coco"), train=12, val=7)


@pytest.fixture
def write(tmp_path, coco):
    """Writes a YAML file of `SMALL` with the given values over it; returns its path."""

    def written(**sections):
        config = {key: dict(value) if isinstance(value, dict) else value for key, value in SMALL.items()}
        config["DATA"]["DATA_PATH"], config["OUTPUT"] = str(coco), str(tmp_path / "output")
        for section, values in sections.items():
            config[section] = {**config.get(section, {}), **values} if isinstance(values, dict) else values
        path = tmp_path / "detection.yaml"
        path.write_text(yaml.safe_dump(config))
        return path

    return written


def folder_of(tmp_path, tag="default"):
    return tmp_path / "output/fat_tiny" / tag


@pytest.fixture(scope="module")
def trained(tmp_path_factory, coco):
    """A run that is finished, of RetinaNet; its folder."""
    output = tmp_path_factory.mktemp("trained")
    path = output / "trained.yaml"
    config = {**SMALL, "DATA": {**SMALL["DATA"], "DATA_PATH": str(coco)}, "OUTPUT": str(output)}
    path.write_text(yaml.safe_dump(config))
    run("--cfg", path)
    return output / "fat_tiny/default"


def test_a_run_is_recorded_and_reported(trained):
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        if line["kind"] == "train":
            assert line["loss"] == pytest.approx(line["classification"] + line["bbox_regression"])
    epochs = [line for line in lines if line["kind"] == "epoch"]
    best = json.loads((trained / "result.json").read_text())["best"]
    assert best["box_ap"] == max(epoch[name]["box_ap"] for epoch in epochs for name in ("raw", "ema"))
    assert epochs[0]["raw"]["num_images"] == 7 and "loss" not in epochs[0]["raw"] and "mask_ap" not in epochs[0]["raw"]
    page = (trained / "report.html").read_text()
    assert "Best box AP, %" in page and "Worst images" in page and "no objects" in page and "missed" in page
    start = next(line for line in lines if line["kind"] == "start")
    log = (trained / "log.txt").read_text()
    assert f"{start['params']:,} parameters" in log and "9 training and 7 validation images, 3 classes" in log
    assert "left out 3 images without objects (DET.EMPTY_IMAGES)" in log and (trained / "train_batch.png").is_file()


def test_a_checkpoint_is_evaluated(trained, write, tmp_path):
    run("--cfg", write(), "--eval", "--resume", trained / "best.pth", "--tag", "eval")
    found = json.loads((folder_of(tmp_path, "eval") / "eval.json").read_text())
    best = json.loads((trained / "result.json").read_text())["best"]
    assert found["box_ap"] == pytest.approx(best["box_ap"], rel=1e-6) and found["complete"] and found["num_images"] == 7


@pytest.mark.parametrize("processes", [rest(1), 2])
def test_a_detector_killed_within_an_epoch_goes_on_to_the_bit(write, tmp_path, processes):
    """With an average, drop path and images of drawn sizes; of two processes, the first is killed, which saves.

    One process accumulates, so that both have four images an update.
    """
    path = write(
        TRAIN={"EPOCHS": 2, "SAVE_EVERY_STEPS": 1, "ACCUMULATION_STEPS": 2 // processes},
        DET={"MIN_SIZE": 48, "EMPTY_IMAGES": True},
    )
    whole, killed = (folder_of(tmp_path, tag) for tag in ("whole", "killed"))
    assert Job("--cfg", path, "--tag", "whole", world_size=processes).wait() == [0] * processes
    job = Job("--cfg", path, "--tag", "killed", world_size=processes, prepare=kill_at_update(2))
    hit, *others = job.wait()
    assert hit == 128 + signal.SIGKILL and all(others)  # which end by themselves
    assert load(killed / "last.pth")["progress"]["step"] == 2  # of 3
    assert Job("--cfg", path, "--tag", "killed", world_size=processes).wait() == [0] * processes
    assert_same_run(whole, killed)


def test_bfloat16_and_one_class_alone(write, tmp_path, coco):
    """All categories are one; the last batch of an epoch has both aspects."""
    for split in ("train", "val"):
        content = annotations_of(coco, split)
        for entry in content["annotations"]:
            entry["category_id"] = 3
        write_annotations(tmp_path, split, {**content, "categories": content["categories"][:1]})
        (tmp_path / split).symlink_to(coco / split)
    path = write(DATA={"DATA_PATH": str(tmp_path)}, AMP={"DTYPE": "bfloat16"}, TRAIN={"EPOCHS": 1, "WARMUP_UPDATES": 1})
    run("--cfg", path)
    record = json.loads((folder_of(tmp_path) / "result.json").read_text())
    assert record["classes"] == 1 and record["precision"].startswith("bfloat16")
    assert 0 <= record["best"]["box_ap"] <= 100


@pytest.fixture
def few_regions(monkeypatch):
    """Mask R-CNN looks at 16 regions of an image, not at 512 and 1000: the same in a tenth of the time."""

    def created(*args, **more):
        model = create_detector(*args, **more)
        model.roi_heads.fg_bg_sampler.batch_size_per_image = 16
        model.rpn._post_nms_top_n = {"training": 16, "testing": 16}
        return model

    monkeypatch.setattr(engine.tasks.detection, "create_detector", created)


def test_masks_are_learned_and_measured(write, tmp_path, coco, few_regions):
    (tmp_path / "few").mkdir()
    for split, count in (("train", 2), ("val", 2)):
        content = annotations_of(coco, split)
        content["images"] = content["images"][:count]
        ids = {image["id"] for image in content["images"]}
        content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] in ids]
        write_annotations(tmp_path / "few", split, content)
        (tmp_path / "few" / split).symlink_to(coco / split)
    path = write(
        MODEL={"HEAD": "mask_rcnn"}, DATA={"DATA_PATH": str(tmp_path / "few")}, EMA={"ENABLED": False},
        TRAIN={"EPOCHS": 1, "WARMUP_UPDATES": 0},
    )  # fmt: skip
    run("--cfg", path)
    lines = [json.loads(line) for line in (folder_of(tmp_path) / "metrics.jsonl").read_text().splitlines()]
    (train,) = (line for line in lines if line["kind"] == "train")
    assert train["loss_mask"] > 0 and train["loss_rpn_box_reg"] >= 0
    (epoch,) = (line for line in lines if line["kind"] == "epoch")
    assert {"box_ap", "mask_ap", "mask_ap50", "mask_ap_small"} <= set(epoch["raw"])
    assert "mask AP, %" in (folder_of(tmp_path) / "report.html").read_text()


@pytest.mark.parametrize("head", ["retinanet", "mask_rcnn"])
def test_a_batch_without_objects_has_finite_losses(head):
    model = create_detector(head, "fat_tiny", 2, min_size=64, max_size=64, **SMALLEST_DENSE).train()
    nothing = {
        "boxes": torch.zeros(0, 4),
        "labels": torch.zeros(0, dtype=torch.int64),
        "masks": torch.zeros(0, 64, 64, dtype=torch.uint8),
    }
    loss = sum(model([torch.rand(3, 64, 64)] * 2, [nothing] * 2).values())
    loss.backward()
    assert torch.isfinite(loss) and all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def random_weights(trained, tmp_path):
    """A checkpoint whose detections are many, so that figures are not all 0; of a run's it has the form."""
    checkpoint = torch.load(trained / "best.pth", weights_only=True)
    generator = torch.Generator().manual_seed(0)
    for name in ("model", "ema"):
        state = checkpoint[name]
        bias = next(key for key in state if key.endswith("cls_logits.bias"))
        state[bias] = torch.randn(state[bias].shape, generator=generator)
    torch.save(checkpoint, tmp_path / "random.pth")
    return tmp_path / "random.pth"


def test_figures_are_the_same_on_two_processes(trained, write, tmp_path):
    """Each image once, whoever looks at it and whatever else is in its batch."""
    path, weights = write(), random_weights(trained, tmp_path)
    run("--cfg", path, "--eval", "--resume", weights, "--tag", "one")
    launch(2, "--cfg", path, "--eval", "--resume", weights, "--tag", "two", "--batch-size", 3)
    one, two = (json.loads((folder_of(tmp_path, tag) / "eval.json").read_text()) for tag in ("one", "two"))
    assert one["num_images"] == two["num_images"] == 7 and one["raw"]["box_ap50"] > 0
    for name in ("raw", "ema"):
        assert one[name] == pytest.approx(two[name], abs=1e-6)


# AP


def image(number, boxes, labels, scores=None, objects=None, size=(60, 80)):
    """One whose objects are rectangles, and are detected where `boxes` says."""
    masks = np.zeros((len(boxes), *size), np.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes):
        mask[round(y1) : round(y2), round(x1) : round(x2)] = 1
    return Detected(
        number, size, objects or [], [list(map(float, box)) for box in boxes], labels, scores or [0.9] * len(boxes), encode_masks(masks)
    )  # fmt: skip


def known(box, label, size=(60, 80), **more):
    x1, y1, x2, y2 = box
    mask = np.zeros((1, *size), np.uint8)
    mask[0, y1:y2, x1:x2] = 1
    values = {
        "label": label,
        "bbox": [float(x1), float(y1), float(x2 - x1), float(y2 - y1)],
        "area": float((x2 - x1) * (y2 - y1)),
    }
    return {**values, "iscrowd": 0, "mask": encode_masks(mask)[0], **more}


FIRST, SECOND = (5, 5, 25, 45), (40, 10, 75, 50)


@pytest.fixture(params=["pycocotools", "faster_coco_eval"])
def by(request):
    pytest.importorskip(request.param)
    return request.param


def test_ap_of_all_of_half_and_of_nothing(by):
    objects = [known(FIRST, 0), known(SECOND, 1)]
    kinds = ("box", "mask")
    whole = average_precision([image(1, [FIRST, SECOND], [0, 1], objects=objects)], 3, kinds, by)
    assert whole.figures == pytest.approx(dict.fromkeys(whole.figures, 100.0)) and {"box_ap", "mask_ap75"} <= set(
        whole.figures
    )
    assert whole.by_class["box"][:2] == pytest.approx([100, 100]) and np.isnan(whole.by_class["box"][2])
    half = average_precision([image(1, [FIRST, SECOND], [0, 0], objects=objects)], 3, kinds, by).figures
    assert [half["box_ap"], half["mask_ap50"]] == pytest.approx([50, 50])
    none = average_precision([image(1, [], [], objects=objects)], 3, kinds, by).figures
    assert none["box_ap"] == none["mask_ap"] == 0
    assert "box_ap_large" not in none and none["box_ap_medium"] == 0


def test_crowds_are_ignored_and_objects_without_a_mask_count_for_boxes_alone(by):
    crowd = known(SECOND, 0, iscrowd=1)
    found = average_precision(
        [image(1, [FIRST, (42, 12, 60, 40)], [0, 0], [0.5, 0.9], [known(FIRST, 0), crowd])], 1, ("box", "mask"), by
    )
    assert [found.figures["box_ap"], found.figures["mask_ap"]] == pytest.approx([100, 100])
    objects = [known(FIRST, 0), known(SECOND, 0, mask=None)]
    found = average_precision([image(1, [FIRST], [0], objects=objects)], 1, ("box", "mask"), by).figures
    assert found["mask_ap"] == pytest.approx(100) and found["box_ap"] < 60


def random_images(count=30):
    rng, images = np.random.default_rng(1), []
    for number in range(count):
        objects, boxes, labels = [], [], []
        for _ in range(int(rng.integers(0, 5))):
            x, y = int(rng.integers(0, 40)), int(rng.integers(0, 25))
            box = (x, y, x + int(rng.integers(4, 40)), y + int(rng.integers(4, 34)))
            objects.append(known(box, int(rng.integers(0, 3)), iscrowd=int(rng.random() < 0.1)))
            boxes.append(np.clip(np.array(box) + rng.integers(-3, 4, 4), [0, 0, 2, 2], [70, 50, 80, 60]).tolist())
            labels.append(objects[-1]["label"] if rng.random() < 0.8 else 0)
        images.append(image(number, boxes, labels, rng.random(len(boxes)).round(2).tolist(), objects))
    return images


def test_both_packages_give_the_same_figures():
    pytest.importorskip("faster_coco_eval")
    one, other = (
        average_precision(random_images(), 4, ("box", "mask"), by) for by in ("pycocotools", "faster_coco_eval")
    )
    assert one.figures == pytest.approx(other.figures, abs=1e-9) and 5 < one.figures["box_ap"] < 95
    for kind in ("box", "mask"):
        assert one.by_class[kind] == pytest.approx(other.by_class[kind], abs=1e-9, nan_ok=True)


def test_figures_do_not_depend_on_the_order_of_images():
    images = random_images()
    assert (
        average_precision(images, 4, ("box",), "pycocotools").figures
        == average_precision(images[::-1], 4, ("box",), "pycocotools").figures
    )
    with pytest.raises(DataError, match="image 3: was evaluated twice"):
        average_precision([*images, images[3]], 4, ("box",), "pycocotools")
    with pytest.raises(DataError, match="have no object with a box"):
        average_precision([image(1, [FIRST], [0])], 1, ("box",), "pycocotools")


def test_errors_of_an_image():
    found = {
        "boxes": torch.tensor([FIRST, FIRST, SECOND, (0, 50, 9, 59)]).float(),
        "labels": torch.tensor([0, 0, 1, 0]),
        "scores": torch.tensor([0.9, 0.8, 0.7, 0.1]),
    }
    objects = [known(FIRST, 0), known(SECOND, 0), known((1, 1, 4, 4), 1, iscrowd=1)]
    errors = errors_in(np.zeros((60, 80, 3), np.uint8), found, objects, "a.png")
    assert (errors.missed, errors.wrong, errors.objects) == (1, 2, 2)  # detected twice, and as another class
    assert errors.size == (80, 60) and errors.place == (-3, "a.png")


# Settings


def test_a_schedule_falls_after_milestones():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = create_lr_scheduler(
        optimizer, LearningRate("multistep", 12, 5 / 7, warmup_lr=0.1, milestones=(8, 11)), updates_per_epoch=7
    )
    rates = []
    for update in range(12 * 7):
        schedule.step_update(update)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates[:6] == pytest.approx([0.1, 0.28, 0.46, 0.64, 0.82, 1.0])
    assert (
        rates[6:56] == [1.0] * 50
        and rates[56:77] == pytest.approx([0.1] * 21)
        and rates[77:] == pytest.approx([0.01] * 7)
    )


@pytest.mark.parametrize("opts, beginning", [
    ("MODEL.HEAD ''", "MODEL.HEAD is ''; known: retinanet, mask_rcnn"),
    ("MODEL.HEAD retinanets", "MODEL.HEAD is 'retinanets'; did you mean 'retinanet'?"),
    ("DATA.DATASET folder", "DATA.DATASET is 'folder'; TASK detection reads coco"),
    ("DET.MIN_SIZE 80", "DET.MIN_SIZE 80, DATA.IMG_SIZE 64, DET.MAX_SIZE 96: are shorter sides and the longest one"),
    ("DATA.IMG_SIZE 128", "DET.MIN_SIZE 0, DATA.IMG_SIZE 128, DET.MAX_SIZE 96: are shorter sides and the longest one"),
    ("AUG.MIXUP 0.8", "AUG.MIXUP: TASK detection does not have it; set AUG.MIXUP and AUG.CUTMIX to 0"),
    ("DATA.VAL_SHARE 0.1", "DATA.VAL_SHARE takes images by their files, which DATA.DATASET coco does not have"),
    ("AUG.REPEATS 3", "AUG.REPEATS: TASK detection does not have it; leave it at its default"),
    ("TRAIN.IMG_SIZES [[0,64]]", "TRAIN.IMG_SIZES: TASK detection does not have it"),
    ("TRAIN.COMPILE True", "TRAIN.COMPILE: TASK detection does not have it"),
    ("DISTILL.TEACHER resnet18", "DISTILL.TEACHER: TASK detection does not have it"),
    ("MODEL.NUM_CLASSES 80", "MODEL.NUM_CLASSES is 80, but train has 3 categories; correct it, or set it to 0"),
    ("DATA.DATA_PATH ''", "DATA.DATA_PATH: is not set; give --data-path, the folder that holds annotations/"),
    ("MODEL.TYPE timm MODEL.NAME resnet18d DATA.TRAIN_SPLIT other", ""),
])  # fmt: skip
def test_settings_that_are_refused(write, opts, beginning):
    words = [word.replace("''", "") for word in opts.split()]
    assert str(error_of("--cfg", write(), "--check", "--opts", *words)).startswith(beginning)


@pytest.mark.parametrize("words, beginning", [
    (["--opts", "TEST.KNN", "[1]"], "TEST.KNN: is about images' classes"),
    (["--opts", "TEST.FLIP", "True"], "TEST.FLIP: TASK detection does not have it"),
    (["--fused"], "TEST.FUSED (--fused): fuse takes models of models.fat, not RetinaNet"),
])  # fmt: skip
def test_an_evaluation_that_is_refused(write, trained, words, beginning):
    assert str(error_of("--cfg", write(), "--eval", "--resume", trained / "best.pth", *words)).startswith(beginning)


def test_a_rehearsal_says_what_does_not_fit(write, tmp_path, coco):
    """`--check` ends with the line of an image whose annotations are of another size."""
    content = annotations_of(coco, "train")
    content["images"][0]["width"] += 1
    write_annotations(tmp_path, "train", content)
    write_annotations(tmp_path, "val", annotations_of(coco, "val"))
    for split in ("train", "val"):
        (tmp_path / split).symlink_to(coco / split)
    error = error_of("--cfg", write(DATA={"DATA_PATH": str(tmp_path)}), "--check")
    assert isinstance(error, DataError) and "has 72 x 64 px, its annotations are of 73 x 64; correct width" in str(
        error
    )


def test_a_timm_backbone_learns_too(write, capsys):
    run("--cfg", write(MODEL={"TYPE": "timm", "NAME": "resnet18", "DROP_PATH_RATE": 0.0, "FAT": {}}), "--check")
    assert "all checks passed; nothing was written" in capsys.readouterr().out


def test_a_classification_checkpoint_is_the_backbone(write, write_config, tmp_path, capsys):
    run(
        "--cfg",
        write_config(MODEL={"FAT": dict(SMALLEST_DENSE)}, TRAIN={"EPOCHS": 1, "WARMUP_EPOCHS": 0}, TAG="classes"),
    )
    weights = folder_of(tmp_path, "classes") / "best.pth"
    run("--cfg", write(TRAIN={"EPOCHS": 1, "WARMUP_UPDATES": 0}), "--pretrained", weights, "--check")
    text = capsys.readouterr().out
    assert (
        "a classification model's, for the backbone); not in it or of another size, and initialised anew: backbone.body"
        in text
    )
    assert text.rstrip().endswith("all checks passed; nothing was written") and "backbone.fpn, head" in text


CONFIGS = sorted((ROOT / "configs/detection").glob("*_fat_b?_?x.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_is_the_paper_s(published_heads, path):
    cfg = load_config(path, ["DATA.DATA_PATH", "/coco"], {}, "train")
    task = create_task(cfg)
    assert isinstance(task, Detection) and cfg.TRAIN.BASE_LR * cfg.TRAIN.TOTAL_BATCH_SIZE / 512 == pytest.approx(1e-4)
    long = path.stem.endswith("3x")
    assert (cfg.TRAIN.EPOCHS, cfg.TRAIN.LR_SCHEDULER.MILESTONES) == ((36, [27, 33]) if long else (12, [8, 11]))
    assert cfg.DET.MIN_SIZE == (640 if long else 0) and f"--cfg configs/detection/{path.name}" in path.read_text()
    model = task.build_model(80)
    assert model.transform.min_size == (tuple(range(640, 801)) if long else (800,)) and model.transform.max_size == 1333
    if not long:
        assert f"Parameters are {sum(p.numel() for p in model.parameters()):,} here" in path.read_text()


def test_all_of_the_paper_s_rows_have_a_config():
    assert {path.stem for path in CONFIGS} == {
        f"{head}_fat_b{n}_{schedule}"
        for head in ("retinanet", "mask_rcnn")
        for n in range(4)
        for schedule in ("1x", "3x")
    }


def test_a_trained_model_is_loaded_alone(trained):
    model = load_trained(trained / "best.pth").model
    with torch.no_grad():
        (found,) = model([torch.zeros(3, 64, 64)])
    assert found["boxes"].shape[1] == 4 and model.transform.min_size == (64,)


def test_a_config_without_a_head_is_an_error(write):
    with pytest.raises(ConfigError, match="MODEL.HEAD"):
        create_task(load_config(write(MODEL={"HEAD": "upernets"})))
