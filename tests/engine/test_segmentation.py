"""TASK segmentation: training, exact evaluation, resuming, bad input."""

import json
import shutil
import signal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from PIL import Image

from conftest import (
    ROOT,
    SMALLEST_DENSE,
    Job,
    assert_same,
    assert_same_run,
    error_of,
    history,
    kill_at_update,
    launch,
    load,
    rest,
    run,
)
from engine.evaluation.confusion_matrix import ConfusionMatrix, class_figures
from engine.evaluation.dense_inference import DenseInference, starts
from engine.tasks import create_task
from engine.tasks.segmentation import pixel_loss
from engine.training.optim import LearningRate, create_lr_scheduler
from masked_images import CLASSES, write_masked_images
from utils.config import load_config

BASE = ROOT / "configs/segmentation/base.yaml"
pytestmark = pytest.mark.usefixtures("narrow_heads")


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return write_masked_images(tmp_path_factory.mktemp("shapes"))


@pytest.fixture
def write_config(tmp_path, shapes):
    """Writes the config of a small run; returns its path."""

    def write(name="seg.yaml", **sections):
        config = {
            "BASE": str(BASE), "DEVICE": "cpu", "PRINT_FREQ": 1, "OUTPUT": str(tmp_path / "output"),
            "DATA": {"DATA_PATH": str(shapes), "IMG_SIZE": 64, "BATCH_SIZE": 4, "NUM_WORKERS": 0},
            "MODEL": {"NAME": "fat_tiny", "FAT": dict(SMALLEST_DENSE), "DROP_PATH_RATE": 0.1},
            "TRAIN": {"EPOCHS": 2, "TOTAL_BATCH_SIZE": 4, "BASE_LR": 0.2},
            "EMA": {"ENABLED": True, "DECAY": 0.9},
            "SEG": {"CLASSES": str(shapes / "classes.txt"), "SCALE": [96, 64]},
        }  # fmt: skip
        for section, values in sections.items():
            if isinstance(values, dict):
                config.setdefault(section, {}).update(values)
            else:
                config[section] = values
        path = tmp_path / name
        path.write_text(yaml.safe_dump(config))
        return path

    return write


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "output/fat_tiny/default"


def epochs_of(folder):
    return [record for record in history(folder) if record["kind"] == "epoch"]


# The configs


@pytest.mark.parametrize(
    "name, params, drop_path",
    [
        ("semantic_fpn_fat_b0", "8,377,702", 0.05),
        rest("semantic_fpn_fat_b1", "11,624,214", 0.0),
        rest("semantic_fpn_fat_b2", "17,204,886", 0.1),
        rest("semantic_fpn_fat_b3", "32,934,422", 0.12),
        ("upernet_fat_b3", "58,991,788", 0.15),
    ],
)
def test_the_paper_s_configs_name_their_parameters(published_heads, name, params, drop_path):
    path = ROOT / f"configs/segmentation/{name}.yaml"
    cfg = load_config(path, [], {}, "throughput")
    model = create_task(cfg).build_model(cfg.MODEL.NUM_CLASSES)
    assert f"{sum(p.numel() for p in model.parameters()):,}" == params
    assert f"{params} parameters" in path.read_text() and cfg.MODEL.DROP_PATH_RATE == drop_path
    updates = 20210 // cfg.TRAIN.TOTAL_BATCH_SIZE * cfg.TRAIN.EPOCHS
    planned = 160_000 if "upernet" in name else 80_000
    assert updates == pytest.approx(planned, rel=0.006)
    lr = cfg.TRAIN.BASE_LR * cfg.TRAIN.TOTAL_BATCH_SIZE / 512
    assert lr == pytest.approx(6e-5 if "upernet" in name else 1e-4)


def test_throughput_names_the_parameters_in_full(published_heads, capsys, monkeypatch):
    import engine.commands.throughput as command

    monkeypatch.setattr(command, "WARMUP_SECONDS", 0)
    monkeypatch.setattr(command, "MEASURED_SECONDS", 0)
    path = ROOT / "configs/segmentation/semantic_fpn_fat_b0.yaml"
    run("--cfg", path, "--throughput", "--batch-size", 1, "--opts", "DATA.IMG_SIZE", 64, "DEVICE", "cpu")
    assert "8,377,702 parameters" in capsys.readouterr().out


def test_the_learning_rate_falls_by_poly_over_the_updates():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-4)
    schedule = create_lr_scheduler(optimizer, LearningRate("poly", epochs=4, power=0.9), updates_per_epoch=5)
    for update in range(20):
        schedule.step_update(update)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-4 * (1 - update / 20) ** 0.9)


# Training


def test_a_run_learns_reports_and_is_evaluated_again(published_heads, write_config, folder, capsys):
    """All ground is 30 % mIoU."""
    path = write_config(TRAIN={"EPOCHS": 12, "TOTAL_BATCH_SIZE": 4, "BASE_LR": 0.3})
    run("--cfg", path, "--opts", "SEG.PHOTOMETRIC", False)
    epochs = epochs_of(folder)
    best = json.loads((folder / "result.json").read_text())["best"]
    assert best["miou"] == max(epoch[name]["miou"] for epoch in epochs for name in ("raw", "ema")) > 45
    out = capsys.readouterr().out
    assert " parameters, " in out and "12 training and 5 validation images, 3 classes" in out
    page = (folder / "report.html").read_text()
    for text in ("Best mIoU, %", "mAcc, %", "aAcc, %", "Worst images", "Classes", "disc", "100.png"):
        assert text in page, text
    mistakes = json.loads((folder / "mistakes.json").read_text())["weights"]["raw"]
    assert [row[0] for row in mistakes[1]["rows"]] != [] and len(mistakes[0]["pictures"]) == 5
    assert {row[0] for row in mistakes[1]["rows"]} == set(CLASSES)
    run("--cfg", path, "--eval", "--resume", folder / "best.pth", "--tag", "eval")
    evaluated = json.loads((folder.with_name("eval") / "eval.json").read_text())
    assert evaluated["miou"] == best["miou"] and evaluated["num_images"] == 5


@pytest.mark.parametrize("more", [{}, rest({"HEAD": "upernet"})])
def test_a_segmentation_killed_within_an_epoch_goes_on_to_the_bit(write_config, tmp_path, more):
    model = {"NAME": "fat_tiny", "FAT": dict(SMALLEST_DENSE), "DROP_PATH_RATE": 0.1, **more}
    path = write_config(TRAIN={"EPOCHS": 2, "TOTAL_BATCH_SIZE": 4, "SAVE_EVERY_STEPS": 1}, MODEL=model)
    whole, killed = (tmp_path / "output/fat_tiny" / tag for tag in ("whole", "killed"))
    run("--cfg", path, "--tag", "whole")
    assert Job("--cfg", path, "--tag", "killed", prepare=kill_at_update(2)).wait() == [128 + signal.SIGKILL]
    assert load(killed / "last.pth")["progress"]["step"] == 2  # of 3
    run("--cfg", path, "--tag", "killed")
    assert_same_run(whole, killed)


def test_two_processes_of_which_one_is_killed_go_on_to_the_bit_and_evaluate_as_one(write_config, tmp_path):
    path = write_config(
        DATA={"DATA_PATH": str(tmp_path / "more"), "IMG_SIZE": 64, "BATCH_SIZE": 2, "NUM_WORKERS": 0},
        TRAIN={"EPOCHS": 2, "TOTAL_BATCH_SIZE": 4, "SAVE_EVERY_STEPS": 1},
        SEG={"CLASSES": str(write_masked_images(tmp_path / "more") / "classes.txt"), "SCALE": [96, 64]},
    )
    whole, killed = (tmp_path / "output/fat_tiny" / tag for tag in ("whole", "killed"))
    launch(2, "--cfg", path, "--tag", "whole")
    job = Job("--cfg", path, "--tag", "killed", world_size=2, prepare=kill_at_update(2, rank=1))
    other, hit = job.wait()
    assert hit == 128 + signal.SIGKILL and other  # which ends by itself, maybe before its second save
    assert 0 < load(killed / "last.pth")["progress"]["step"] < 3
    launch(2, "--cfg", path, "--tag", "killed")
    assert_same_run(whole, killed)
    for tag, processes in (("one", 1), ("two", 2)):
        command = ("--cfg", path, "--eval", "--resume", whole / "last.pth", "--tag", tag)
        launch(processes, *command) if processes > 1 else run(*command)
    one, two = (json.loads((whole.with_name(tag) / "eval.json").read_text()) for tag in ("one", "two"))
    for key in ("miou", "macc", "aacc", "num_images"):
        assert one[key] == two[key] == epochs_of(whole)[-1][one["weights"]][key]


def test_accumulation_amp_and_workers(write_config, folder):
    path = write_config(
        DATA={"DATA_PATH": str(write_masked_images(folder.parent / "set")), "IMG_SIZE": 64, "BATCH_SIZE": 2, "NUM_WORKERS": 1},
        AMP={"DTYPE": "bfloat16"},
        TRAIN={"EPOCHS": 1, "TOTAL_BATCH_SIZE": 6, "IMG_SIZES": [[0, 96]]},
    )  # fmt: skip
    run("--cfg", path)
    assert len([record for record in history(folder) if record["kind"] == "train"]) == 2


def test_upernet_logs_both_losses(write_config, folder):
    path = write_config(
        MODEL={"NAME": "fat_tiny", "FAT": dict(SMALLEST_DENSE), "HEAD": "upernet"},
        TRAIN={"EPOCHS": 1, "TOTAL_BATCH_SIZE": 4},
    )
    run("--cfg", path)
    lines = [record for record in history(folder) if record["kind"] == "train"]
    assert lines and all(
        line["loss"] == pytest.approx(line["main"] + 0.4 * line["auxiliary"], rel=1e-6) for line in lines
    )


def test_a_timm_backbone(write_config, tmp_path):
    path = write_config(MODEL={"TYPE": "timm", "NAME": "test_resnet", "FAT": {}, "DROP_PATH_RATE": 0.0})
    run("--cfg", path, "--opts", "TRAIN.EPOCHS", 1)
    assert epochs_of(tmp_path / "output/test_resnet/default")


def test_a_classification_checkpoint_starts_the_backbone(write_config, tmp_path, capsys):
    cfg = load_config(ROOT / "configs/fat_b0.yaml", [], {}, "train")
    cfg.defrost()
    cfg.MODEL.NAME, cfg.MODEL.FAT.embed_dims = "fat_tiny", SMALLEST_DENSE["embed_dims"]
    cfg.MODEL.FAT.depths, cfg.MODEL.FAT.num_heads = SMALLEST_DENSE["depths"], SMALLEST_DENSE["num_heads"]
    classifier = create_task(cfg).build_model(7)
    torch.save({"model": classifier.state_dict()}, tmp_path / "classifier.pth")
    seen = []
    path = write_config()
    from conftest import cli
    from engine.observer import Observer

    class Start(Observer):
        def before_update(self, trainer, step):
            if not seen:
                seen.append({k: v.clone() for k, v in trainer.networks.model.state_dict().items()})

    cli.main(
        ["--cfg", str(path), "--pretrained", str(tmp_path / "classifier.pth"), "--opts", "TRAIN.EPOCHS", "1"], [Start()]
    )
    out = capsys.readouterr().out
    (line,) = [line for line in out.splitlines() if "started from" in line]
    for name in ("norm0", "norm1", "norm2", "norm3", "neck", "head"):
        assert name in line
    weights, prefix = classifier.state_dict(), "backbone.network.model."
    same = [k for k in weights if prefix + k in seen[0] and torch.equal(seen[0][prefix + k], weights[k])]
    assert set(weights) - set(same) == {"norm.weight", "norm.bias", "head.weight", "head.bias"} & set(weights)


def test_a_checkpoint_of_another_model_is_refused(write_config, tmp_path):
    torch.save({"model": torch.nn.Linear(3, 3).state_dict()}, tmp_path / "other.pth")
    error = error_of("--cfg", write_config(), "--pretrained", tmp_path / "other.pth")
    assert "is of another model" in str(error)


# Loss and figures


def test_the_loss_counts_ignored_pixels_as_0():
    torch.manual_seed(0)
    logits, masks = torch.randn(2, 3, 4, 4), torch.randint(-1, 3, (2, 4, 4)).short()
    counted = masks >= 0
    each = F.cross_entropy(logits.permute(0, 2, 3, 1)[counted], masks[counted].long(), reduction="sum")
    assert pixel_loss(logits, masks) == pytest.approx(float(each) / 32)
    assert pixel_loss(logits, torch.full_like(masks, -1)) == 0


def test_figures_of_a_confusion_matrix():
    """By hand: class 0 has 4 pixels, 3 found; class 1 has 2, 2 found and one more taken for it; class 2 is not there."""
    confusion = ConfusionMatrix(3, torch.device("cpu"))
    labels = torch.tensor([[0, 0, 0, 0], [1, 1, -1, -1]], dtype=torch.int16)
    confusion.add(torch.tensor([[0, 0, 0, 1], [1, 1, 0, 2]]), labels)
    figures = confusion.compute()
    assert figures["miou"] == pytest.approx(100 * (3 / 4 + 2 / 3) / 2)
    assert figures["macc"] == pytest.approx(100 * (3 / 4 + 1) / 2)
    assert figures["aacc"] == pytest.approx(100 * 5 / 6) and figures["num_images"] == 1
    each = class_figures(confusion.gather())
    assert np.isnan(each.iou[2]) and np.isnan(each.accuracy[2]) and each.share.tolist() == [4 / 6, 2 / 6, 0]


def test_windows_cover_a_side():
    assert starts(50, 64, 42) == [0] and starts(64, 64, 42) == [0]
    assert starts(100, 64, 42) == [0, 36] and starts(150, 64, 42) == [0, 42, 84, 86]


def by_pixel(images):
    """A model whose logits are a function of each pixel alone: windows and mirror images must not change them."""
    return torch.stack([images[:, 0], images[:, 1], -images[:, 2]], dim=1)


@pytest.mark.parametrize(
    "how", [{}, {"flip": True}, {"window": 24, "stride": 16}, {"window": 24, "stride": 10, "flip": True}]
)
def test_views_of_an_image_lie_over_one_another(how):
    torch.manual_seed(0)
    image = torch.randn(3, 40, 61)
    found = DenseInference(scale=(61, 40), **how).classes(by_pixel, image)
    assert torch.equal(found, by_pixel(image[None])[0].argmax(0))


def test_several_scales_are_one_answer_in_the_image_s_size():
    image = torch.zeros(3, 40, 60)
    image[0, :20], image[1, 20:] = 5, 5
    found = DenseInference(scale=(60, 40), factors=(0.5, 1.0, 1.75), flip=True).classes(by_pixel, image)
    assert torch.equal(found, (torch.arange(40) >= 20).long()[:, None].expand(40, 60))


def test_the_keys_of_evaluation_arrive(write_config, folder):
    path = write_config(TRAIN={"EPOCHS": 1, "TOTAL_BATCH_SIZE": 4})
    slide = ["SEG.MODE", "slide", "DATA.IMG_SIZE", "32"]
    scales = ["SEG.SCALES", "[0.5,1.5]", "TEST.FLIP", "True"]
    for opts, how in (
        ([], DenseInference([96, 64], [1.0])),
        (slide, DenseInference([96, 64], [1.0], window=32, stride=22)),
        ([*slide, "SEG.STRIDE", "20"], DenseInference([96, 64], [1.0], window=32, stride=20)),
        (scales, DenseInference([96, 64], [0.5, 1.5], flip=True)),
    ):
        assert create_task(load_config(path, opts, {}, "train")).inference() == how
    run("--cfg", path)
    for opts in (slide, scales):
        run("--cfg", path, "--eval", "--resume", folder / "last.pth", "--tag", "views", "--opts", *opts)
        figures = json.loads((folder.with_name("views") / "eval.json").read_text())["raw"]
        assert figures["num_images"] == 5 and 0 < figures["aacc"] <= 100


def test_images_of_one_side_of_a_few_pixels(write_config, tmp_path):
    root = write_masked_images(tmp_path / "thin")
    for number, size in ((200, (300, 7)), (201, (5, 5))):
        Image.new("RGB", size, "red").save(root / f"images/val/{number}.png")
        Image.new("L", size, 1).save(root / f"annotations/val/{number}.png")
    run("--cfg", write_config(), "--data-path", root, "--opts", "TRAIN.EPOCHS", 1)
    assert epochs_of(tmp_path / "output/fat_tiny/default")[0]["raw"]["num_images"] == 7


# Bad input


def spoiled(tmp_path, shapes, spoil):
    root = tmp_path / "spoiled"
    shutil.copytree(shapes, root)
    spoil(root)
    return root


def values(number, where="annotations/train/000.png"):
    def spoil(root):
        mask = np.array(Image.open(root / where))
        mask[:2, :3] = number
        Image.fromarray(mask).save(root / where)

    return spoil


@pytest.mark.parametrize(
    "spoil, said",
    [
        (lambda root: (root / "annotations/train/003.png").unlink(),
         "annotations/train/003.png: is missing, the mask of "),
        (lambda root: (root / "annotations/val/101.png").rename(root / "annotations/val/x.png"),
         "annotations/val/101.png: is missing"),
        (lambda root: Image.new("L", (9, 9)).save(root / "annotations/train/000.png"), "000.png: is 9 x 9 px, its image "),
        (values(7), "000.png: has ids beyond the 3 classes (0 .. 2, left out: 255): 7, 6 px; check SEG.CLASSES"),
        (lambda root: Image.new("RGB", (60, 60)).save(root / "annotations/train/000.png"),
         "000.png: cannot be read as an image (ValueError: it holds colours"),
        (lambda root: (root / "annotations/train/000.png").write_bytes(b""), "000.png: cannot be read as an image (empty)"),
        (lambda root: (root / "images/train/000.png").write_bytes(b"x"), "images/train/000.png: cannot be read as an image"),
        (lambda root: shutil.rmtree(root / "annotations/val"), "annotations/val: no such folder"),
        (lambda root: [path.unlink() for path in (root / "images/train").iterdir()], "images/train: holds no images"),
    ],
)  # fmt: skip
def test_a_spoiled_set_is_refused_by_check_in_one_line(tmp_path, shapes, write_config, spoil, said):
    root = spoiled(tmp_path, shapes, spoil)
    error = error_of("--cfg", write_config(), "--data-path", root, "--check")
    assert said in str(error), error
    assert not (tmp_path / "output").exists()


def test_check_writes_nothing(write_config, tmp_path, capsys):
    run("--cfg", write_config(), "--check")
    assert not (tmp_path / "output").exists() and "one micro-batch" in capsys.readouterr().out


def test_a_bad_mask_is_left_out_if_asked(tmp_path, shapes, write_config, folder):
    root = spoiled(tmp_path, shapes, values(9, "annotations/val/102.png"))
    path = write_config(TRAIN={"EPOCHS": 1, "TOTAL_BATCH_SIZE": 4})
    assert "102.png: has ids beyond" in str(error_of("--cfg", path, "--data-path", root))
    run("--cfg", path, "--data-path", root, "--tag", "skip", "--opts", "DATA.ON_ERROR", "skip")
    figures = epochs_of(folder.with_name("skip"))[0]["raw"]
    assert figures["num_images"] == 4 and figures["unreadable"] == 1
    assert "102.png" in (folder.with_name("skip") / "unreadable.txt").read_text()


def everything(number, splits=("train", "val")):
    def spoil(root):
        for split in splits:
            for path in (root / "annotations" / split).iterdir():
                Image.new("L", Image.open(path).size, number).save(path)

    return spoil


def test_masks_that_are_all_ignored(tmp_path, shapes, write_config, folder):
    """A training set without a class has the loss 0; a validation set without one has no figures."""
    path = write_config(TRAIN={"EPOCHS": 1, "TOTAL_BATCH_SIZE": 4})
    run("--cfg", path, "--data-path", spoiled(tmp_path, shapes, everything(255, ["train"])))
    assert epochs_of(folder)[0]["train_loss"] == 0
    root = tmp_path / "none"
    shutil.copytree(shapes, root)
    everything(255)(root)
    error = error_of("--cfg", path, "--data-path", root, "--tag", "none")
    assert str(error).startswith("DATA.VAL_SPLIT: no pixel of the masks has a class")


def test_masks_of_one_class(tmp_path, shapes, write_config, folder):
    root = spoiled(tmp_path, shapes, everything(1))
    run("--cfg", write_config(), "--data-path", root, "--opts", "TRAIN.EPOCHS", 1)
    assert 0 <= epochs_of(folder)[0]["raw"]["miou"] <= 100


@pytest.mark.parametrize(
    "opts, said",
    [
        (["SEG.CLASSES", ""], "SEG.CLASSES: is not set; give a text file with a class' name per line, or one of ade20k"),
        (["SEG.CLASSES", "nowhere.txt"], "SEG.CLASSES: nowhere.txt cannot be read"),
        (["SEG.CLASSES", "{tmp}/one.txt"], "names 1 classes; a pixel's is chosen among two or more"),
        (["SEG.CLASSES", "{tmp}/twice.txt"], "has the class 'a' more than once"),
        (["MODEL.NUM_CLASSES", 4], "MODEL.NUM_CLASSES is 4, but SEG.CLASSES"),
        (["MODEL.HEAD", "upernett"], "MODEL.HEAD is 'upernett'; with TASK segmentation, did you mean 'upernet'?"),
        (["MODEL.NAME", "fat_b9", "MODEL.FAT.depths", "[]"], "MODEL.NAME is 'fat_b9', which is not registered, and MODEL.FAT has no depths"),
        (["MODEL.NAME", "resnet19", "MODEL.TYPE", "timm"], "MODEL.NAME is 'resnet19', unknown to timm"),
        (["DATA.DATASET", "folder"], "DATA.DATASET is 'folder'; with TASK segmentation,"),
        (["AUG.MIXUP", 0.8], "TASK segmentation does not use AUG.MIXUP 0.8; set AUG.MIXUP 0.0, as configs/segmentation/base"),
        (["SEG.STRIDE", 65], "SEG.STRIDE is 65, more than the windows' DATA.IMG_SIZE 64"),
        (["DISTILL.TEACHER", "fat_b0"], "TASK segmentation does not use DISTILL.TEACHER fat_b0"),
        (["DATA.DATA_PATH", ""], "DATA.DATA_PATH: is not set"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be(write_config, tmp_path, opts, said):
    (tmp_path / "one.txt").write_text("a\n")
    (tmp_path / "twice.txt").write_text("a\nb\na\n")
    opts = [one.format(tmp=tmp_path) if isinstance(one, str) else one for one in opts]
    assert said in str(error_of("--cfg", write_config(), "--check", "--opts", *opts))


def test_other_classes_than_the_checkpoint_s(write_config, folder, tmp_path):
    path = write_config(TRAIN={"EPOCHS": 1, "TOTAL_BATCH_SIZE": 4})
    run("--cfg", path)
    (tmp_path / "others.txt").write_text("ground\ncircle\nsquare\n")
    command = ("--cfg", path, "--opts", "SEG.CLASSES", tmp_path / "others.txt")
    error = error_of(*command[:2], "--eval", "--resume", folder / "last.pth", *command[2:])
    assert "SEG.CLASSES: names 3 classes, the model knows 3, and from the 2. on they differ" in str(error)


def test_the_averaged_model_is_the_same_in_both_runs(write_config, tmp_path):
    """Two runs with one seed are equal, as of classification."""
    path = write_config(TRAIN={"EPOCHS": 1, "TOTAL_BATCH_SIZE": 4})
    for tag in ("a", "b"):
        run("--cfg", path, "--tag", tag)
    a, b = (load(tmp_path / "output/fat_tiny" / tag / "last.pth") for tag in ("a", "b"))
    assert_same(a["ema"], b["ema"])
