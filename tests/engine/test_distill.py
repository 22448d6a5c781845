"""Distillation: the formulas, what the teacher sees, students with a second head, and runs with a teacher."""

import json

import pytest
import timm
import torch
import torch.nn.functional as F

import models
from conftest import SMALLEST, assert_same_run, error_of, launch, load, run, smallest_model, stop_at_update
from data.batches import Examples
from engine.checkpoints.file import interpret
from engine.tasks import create_task
from engine.tasks.distill import Distillation, Inputs, Teacher, pretrained_teacher, trained_teacher
from known_weights import difference, realistic
from utils.config import load_config
from utils.errors import ConfigError

IMAGENET = Inputs((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class Known(torch.nn.Module):
    """Logits that are known; notes what it was asked."""

    def __init__(self, logits):
        super().__init__()
        self.logits = torch.nn.Parameter(logits)
        self.drop = torch.nn.Dropout(0.5)

    def forward(self, images):
        self.images = images
        return self.drop(self.logits[: len(images)])


def logits(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def teacher_file(tmp_path_factory, digits):
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("teacher") / "teacher.pth"
    torch.save({"state_dict": timm.create_model("fat_tiny", num_classes=3).state_dict()}, path)
    return path


# The loss


@pytest.mark.parametrize("tau", [1.0, 3.0])
def test_soft_by_hand(tau):
    student, teacher = logits(4, 5), logits(4, 5, seed=1)
    found = Distillation(Teacher(Known(teacher), IMAGENET, IMAGENET), "soft", 0.3, tau)(
        torch.tensor(2.0), student, torch.zeros(4, 3, 8, 8)
    )
    p, q = (teacher.double() / tau).softmax(1), (student.double() / tau).softmax(1)
    divergence = (p * (p.log() - q.log())).sum() * tau**2 / 20
    assert found.item() == pytest.approx((0.7 * 2 + 0.3 * divergence).item(), rel=1e-5)


def test_hard_by_hand():
    student, teacher = logits(4, 5), logits(4, 5, seed=1)
    found = Distillation(Teacher(Known(teacher), IMAGENET, IMAGENET), "hard", 0.25, 3.0)(
        torch.tensor(2.0), student, torch.zeros(4, 3, 8, 8)
    )
    assert found.item() == pytest.approx(0.75 * 2 + 0.25 * F.cross_entropy(student, teacher.argmax(1)).item(), rel=1e-6)


def test_the_teacher_learns_nothing_and_drops_nothing():
    known, student = Known(logits(4, 5)), logits(4, 5, seed=1).requires_grad_()
    Distillation(Teacher(known, IMAGENET, IMAGENET), "soft", 0.5, 1.0)(
        torch.tensor(0.0), student, torch.zeros(4, 3, 8, 8)
    ).backward()
    assert known.logits.grad is None and student.grad.abs().sum() > 0 and not known.training


def test_images_are_normalised_and_resized_as_the_teacher_knows_them():
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    as_given = (pixels - torch.tensor(IMAGENET.mean).view(3, 1, 1)) / torch.tensor(IMAGENET.std).view(3, 1, 1)
    known = Known(logits(2, 5))
    Teacher(known, Inputs((0.5, 0.4, 0.3), (0.5, 0.2, 0.1), (48, 40)), IMAGENET)(as_given)
    wanted = (pixels - torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)) / torch.tensor([0.5, 0.2, 0.1]).view(3, 1, 1)
    wanted = F.interpolate(wanted, (48, 40), mode="bicubic", antialias=True)
    assert known.images.shape == (2, 3, 48, 40) and torch.allclose(known.images, wanted, atol=1e-4)
    Teacher(known, IMAGENET, IMAGENET)(as_given)
    assert known.images is as_given


def test_student_and_teacher_see_the_same_mixed_images(write_config):
    task = create_task(load_config(write_config()))
    known, seen = Known(logits(8, 3)), []
    task.prepare_training(3, Distillation(Teacher(known, IMAGENET, IMAGENET), "soft", 0.5, 1.0))
    images = logits(8, 3, 32, 32)
    task.loss(
        lambda x: seen.append(x.clone()) or logits(8, 3, seed=2),
        Examples(images.clone(), torch.arange(8) % 3, [""] * 8),
    )
    assert torch.equal(known.images, seen[0]) and not torch.equal(images, seen[0])


def test_two_heads_learn_from_the_labels_and_from_the_teacher(write_config):
    task = create_task(load_config(write_config(AUG={"MIXUP": 0.0, "CUTMIX": 0.0})))
    teacher, targets = logits(4, 3, seed=1), torch.tensor([0, 1, 2, 0])
    task.prepare_training(3, Distillation(Teacher(Known(teacher), IMAGENET, IMAGENET), "hard", 0.4, 1.0))
    pair = logits(4, 3, seed=2), logits(4, 3, seed=3)
    found = task.loss(lambda x: pair, Examples(torch.zeros(4, 3, 32, 32), targets, [""] * 4))
    labels = F.cross_entropy(pair[0], targets, label_smoothing=0.1)
    assert found["loss"].item() == pytest.approx(
        (0.6 * labels + 0.4 * F.cross_entropy(pair[1], teacher.argmax(1))).item(), rel=1e-5
    )


# Students


def test_a_distilled_fat_has_a_second_head_and_no_other_difference():
    plain, distilled = (realistic(num_classes=5, distilled=value) for value in (False, True))
    assert set(distilled.state_dict()) - set(plain.state_dict()) == {"head_dist.weight", "head_dist.bias"}
    images = torch.randn(2, 3, 64, 64)
    distilled.train().set_distilled_training()
    with torch.no_grad():
        first, second = distilled(images)
        features = distilled.forward_head(distilled.forward_features(images), pre_logits=True)
        assert first.shape == second.shape == (2, 5) and features.shape == (2, 128)
        distilled.eval()
        features = distilled.forward_head(distilled.forward_features(images), pre_logits=True)
        mean = (distilled.head(features) + distilled.head_dist(features)) / 2
        assert torch.allclose(distilled(images), mean) and not torch.allclose(mean, distilled.head(features))
    distilled.reset_classifier(7)
    assert distilled.head_dist.out_features == 7 and len(distilled.get_classifier()) == 2
    distilled.reset_classifier(0)
    assert distilled(images).shape == (2, 128)
    plain.set_distilled_training()
    assert plain.train()(images).shape == (2, 5)


def test_the_deployed_form_has_one_head():
    model, images = realistic(num_classes=5, distilled=True), torch.randn(2, 3, 64, 64)
    fused = models.fuse(model)
    with torch.no_grad():
        assert difference(fused(images), model(images)) < 2e-5
    assert not any("dist" in key for key in fused.state_dict())


def test_fine_tuning_a_distilled_fat_for_other_classes(write_config, tmp_path, capsys):
    torch.manual_seed(0)
    other = smallest_model(num_classes=7, distilled=True)
    torch.save(other.state_dict(), tmp_path / "other.pth")
    run(
        "--cfg",
        write_config(),
        "--check",
        "--pretrained",
        tmp_path / "other.pth",
        "--opts",
        "MODEL.FAT.distilled",
        "True",
    )
    said = capsys.readouterr().out
    assert "initialised anew: head.weight, head.bias, head_dist.weight, head_dist.bias" in said


# Teachers


def test_a_teacher_s_file_says_what_images_it_knows(tmp_path):
    model = timm.create_model("deit_tiny_patch16_224", num_classes=3, img_size=32)
    data = {"IMG_SIZE": 32, "MEAN": [0.5, 0.5, 0.5], "STD": [0.1, 0.2, 0.3]}
    found, own, _ = trained_teacher("deit_tiny_patch16_224", 3, interpret(model.state_dict(), tmp_path), data)
    assert own == Inputs([0.5, 0.5, 0.5], [0.1, 0.2, 0.3], (32, 32))
    assert torch.equal(found.head.weight, model.head.weight)
    wide = timm.create_model("deit_tiny_patch16_224", num_classes=3)
    assert trained_teacher("deit_tiny_patch16_224", 3, interpret(wide.state_dict(), tmp_path), {})[1] == Inputs(
        IMAGENET.mean, IMAGENET.std, (224, 224)
    )
    small = timm.create_model("fat_tiny", num_classes=3)
    assert trained_teacher("fat_tiny", 3, interpret(small.state_dict(), tmp_path), {})[1] == IMAGENET


def test_timm_s_weights_that_cannot_be_had(monkeypatch):
    def unreachable(*args, **kwargs):
        raise OSError("no route\nto host")

    with pytest.raises(ConfigError, match="resnet18 knows 1000 classes, the data set has 3"):
        pretrained_teacher("resnet18", 3)
    with pytest.raises(ConfigError, match="fat_tiny cannot be had"):
        pretrained_teacher("fat_tiny", 1000)
    monkeypatch.setattr(timm, "create_model", unreachable)
    with pytest.raises(
        ConfigError,
        match=r"DISTILL.TEACHER: timm's weights of resnet18 cannot be had \(no route to host\); check the network",
    ):
        pretrained_teacher("resnet18", 1000)


def test_refused(write_config, teacher_file, tmp_path):
    def message(**values):
        return str(error_of("--cfg", write_config(DISTILL=values)))

    assert "'resnet18'" in message(TEACHER="resnet_18", WEIGHTS=str(teacher_file))
    assert "is no fat_small for 3 classes" in message(TEACHER="fat_small", WEIGHTS=str(teacher_file))
    torch.save(timm.create_model("fat_tiny", num_classes=10).state_dict(), tmp_path / "ten.pth")
    assert "head.weight (10, 128)" in message(TEACHER="fat_tiny", WEIGHTS=f"{tmp_path}/ten.pth").replace(
        "is (10", "(10"
    )
    torch.save({"model": load(teacher_file)["state_dict"], "classes": ["1", "0", "2"]}, tmp_path / "turned.pth")
    assert "other classes" in message(TEACHER="fat_tiny", WEIGHTS=f"{tmp_path}/turned.pth")
    assert "missing.pth" in message(TEACHER="fat_tiny", WEIGHTS=f"{tmp_path}/missing.pth")
    assert "DISTILL.KIND" in message(TEACHER="fat_tiny", WEIGHTS=str(teacher_file), KIND="sof")


# Runs


def distilling(write_config, teacher_file, **values):
    distill = {"TEACHER": "fat_tiny", "WEIGHTS": str(teacher_file), "KIND": "soft", "ALPHA": 0.9, "TAU": 2.0}
    return write_config(**{**values, "DISTILL": {**distill, **values.get("DISTILL", {})}})


@pytest.mark.parametrize("values", [
    {}, {"DISTILL": {"KIND": "hard"}, "MODEL": {"FAT": {**SMALLEST, "distilled": True}}},
    {"AMP": {"DTYPE": "bfloat16"}}, {"AUG": {"MIXUP": 0.0, "CUTMIX": 0.0, "SPLITS": 2}},
    {"MODEL": {"TYPE": "timm", "NAME": "deit_tiny_distilled_patch16_224", "FAT": {}}},
])  # fmt: skip
def test_runs_with_a_teacher(write_config, tmp_path, teacher_file, values):
    path = distilling(write_config, teacher_file, **values)
    run("--cfg", path, "--check")
    run("--cfg", path, "--opts", "TRAIN.EPOCHS", "1", "TRAIN.WARMUP_EPOCHS", "0")
    (folder,) = (tmp_path / "output").glob("*/default")
    saved = load(folder / "last.pth")
    assert not any("teacher" in key for key in saved["model"]) and saved["progress"]["updates"] == 7
    run("--cfg", path, "--eval", "--resume", folder / "last.pth")
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert json.loads((folder / "eval.json").read_text())["raw"] == last["raw"]


def test_the_student_comes_to_agree_with_the_teacher(write_config, tmp_path, digits, teacher_file):
    """With alpha 1 the labels do not count: the run ends near the teacher, a model of its kind, nearer than it began."""
    from PIL import Image
    from timm.data import create_transform

    path = distilling(
        write_config, teacher_file, DISTILL={"ALPHA": 1.0, "TAU": 1.0}, TRAIN={"EPOCHS": 6, "WARMUP_EPOCHS": 0, "WEIGHT_DECAY": 0.0}, MODEL={"FAT": {}},
        AUG={"MIXUP": 0.0, "CUTMIX": 0.0, "REPROB": 0.0, "AUTO_AUGMENT": "none"},
    )  # fmt: skip
    run("--cfg", path)
    losses = [
        r["loss"]
        for r in map(json.loads, (tmp_path / "output/fat_tiny/default/metrics.jsonl").read_text().splitlines())
        if r["kind"] == "train"
    ]
    assert sum(losses[-7:]) < 0.5 * sum(losses[:7])
    transform = create_transform(32, interpolation="bicubic", mean=IMAGENET.mean, std=IMAGENET.std)
    images = torch.stack(
        [transform(Image.open(file).convert("RGB")) for file in sorted((digits / "val").rglob("*.png"))]
    )
    teacher, student = (timm.create_model("fat_tiny", num_classes=3).eval() for _ in range(2))
    teacher.load_state_dict(load(teacher_file)["state_dict"])
    student.load_state_dict(load(tmp_path / "output/fat_tiny/default/last.pth")["model"])
    with torch.no_grad():
        assert (teacher(images).softmax(1) - student(images).softmax(1)).abs().mean() < 0.1


def test_in_a_run_each_head_has_its_own_teacher(write_config, tmp_path, teacher_file):
    """With alpha 1 and no decay the head of the labels stays as it began: its biases are 0."""
    path = distilling(
        write_config, teacher_file, DISTILL={"ALPHA": 1.0}, MODEL={"FAT": {**SMALLEST, "distilled": True}},
        TRAIN={"EPOCHS": 1, "WARMUP_EPOCHS": 0, "WEIGHT_DECAY": 0.0},
    )  # fmt: skip
    run("--cfg", path)
    model = load(tmp_path / "output/fat_tiny/default/last.pth")["model"]
    assert not model["head.bias"].any() and model["head_dist.bias"].all()


def test_two_processes_learn_the_same_and_resume_to_the_same_bits(write_config, tmp_path, teacher_file, monkeypatch):
    path = distilling(
        write_config,
        teacher_file,
        DATA={"BATCH_SIZE": 4},
        MODEL={"FAT": {**SMALLEST, "distilled": True}},
        TRAIN={"SAVE_EVERY_STEPS": 2},
    )
    launch(2, "--cfg", path, "--tag", "whole")
    restore = stop_at_update(monkeypatch, 11)
    with pytest.raises(Exception):
        launch(2, "--cfg", path, "--tag", "cut")
    restore()
    launch(2, "--cfg", path, "--tag", "cut")
    assert_same_run(tmp_path / "output/fat_tiny/whole", tmp_path / "output/fat_tiny/cut")
