"""Sizes that change in training, and what evaluation shows a model of an image."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform
from torchvision import transforms

from conftest import Stop, assert_same_run, error_of, launch, run, smallest_model, stop_at_update
from data.batches import Examples
from data.dataset import ImageDataset, SeededIndex
from data.samplers import TrainBatchSampler
from data.schedule import Schedule
from data.sources import open_source
from data.transforms import eval_transform
from engine.evaluation.evaluators import ClassEvaluator
from engine.evaluation.views import predict_views
from engine.tasks import create_task
from engine.tasks.classification import Classification
from loading import augmentation
from utils.config import load_config

STEPS = [[0, 32], [1, 64], [3, 48]]


def note_sizes(monkeypatch):
    """The image sizes of training and of evaluation, in the order of their batches."""
    seen = {"loss": [], "step": []}
    for part, name in ((Classification, "loss"), (ClassEvaluator, "step")):
        original = getattr(part, name)

        def noting(self, model, batch, *args, name=name, original=original):
            seen[name].append(batch.images.shape[-1])
            return original(self, model, batch, *args)

        monkeypatch.setattr(part, name, noting)
    return seen


# Training


def test_a_size_is_a_function_of_the_epoch():
    sampler = TrainBatchSampler(8, Schedule(2, 4, 0, 1, seed=0, sizes=STEPS))
    plain = TrainBatchSampler(8, Schedule(2, 4, 0, 1, seed=0))
    for epoch, size in enumerate([32, 64, 64, 48, 48]):
        sampler.set_position(epoch)
        plain.set_position(epoch)
        keys = [key for batch in sampler for key in batch]
        # the same images and augmentation
        assert [key[:2] for key in keys] == [key[:2] for batch in plain for key in batch]
        assert {key.size for key in keys} == {size} and plain.schedule.size_at(epoch) == 0


@pytest.mark.parametrize("backend", ["pil", "cv2"])
def test_a_sized_picture_is_that_of_a_set_of_that_size(digits, backend):
    small, large = (augmentation(backend=backend, img_size=size) for size in (32, 64))

    def dataset(transform, **sized):
        return ImageDataset(open_source("folder", "train", str(digits), transform.decode), transform, **sized)

    both = dataset(small, sized={32: small, 64: large})
    for seed in range(5):
        for size, alone in ((0, dataset(small)), (64, dataset(large))):
            one, other = both[SeededIndex(3, seed, size)].sample[0], alone[SeededIndex(3, seed)].sample[0]
            assert np.array_equal(one.pixels, other.pixels) and [e[:4] for e in one.erasures] == [
                e[:4] for e in other.erasures
            ]


def test_sizes_change_between_epochs_and_the_largest_is_rehearsed(write_config, monkeypatch, capsys):
    """With loading processes, which live as long as the run."""
    seen = note_sizes(monkeypatch)
    path = write_config(TRAIN={"IMG_SIZES": STEPS, "EPOCHS": 4}, DATA={"NUM_WORKERS": 2}, TEST={"IMG_SIZE": 40})
    run("--cfg", path)
    rehearsed, trained = seen["loss"][:-28], seen["loss"][-28:]
    assert rehearsed[:2] == [64, 64] and set(rehearsed[2:]) == {32, 48, 64}
    assert trained == [32] * 7 + [64] * 14 + [48] * 7 and set(seen["step"]) == {40}
    lines = [line.split(" ", 2)[2] for line in capsys.readouterr().out.splitlines() if "training images of" in line]
    assert lines == [f"epoch {epoch}: training images of {size} px" for epoch, size in STEPS]


@pytest.mark.parametrize("update", [5, 10])
def test_resumed_in_any_epoch_to_the_same_bits(write_config, tmp_path, monkeypatch, update):
    path = write_config(TRAIN={"IMG_SIZES": [[0, 32], [1, 48]], "SAVE_EVERY_STEPS": 2})
    run("--cfg", path, "--tag", "whole")
    restore = stop_at_update(monkeypatch, update)
    with pytest.raises(Stop):
        run("--cfg", path, "--tag", "cut")
    restore()
    run("--cfg", path, "--tag", "cut")
    assert_same_run(tmp_path / "output/fat_tiny/whole", tmp_path / "output/fat_tiny/cut")


@pytest.mark.parametrize("values, parts", [
    (dict(TRAIN={"IMG_SIZES": [[1, 32]]}), ["TRAIN.IMG_SIZES", "epoch 0"]),
    (dict(TRAIN={"IMG_SIZES": [[0, 32], [0, 64]]}), ["TRAIN.IMG_SIZES", "rising"]),
    (dict(TRAIN={"IMG_SIZES": [[0, 16]]}), ["TRAIN.IMG_SIZES", "32 and 4096"]),
    (dict(TRAIN={"IMG_SIZES": [0, 32]}), ["TRAIN.IMG_SIZES", "list of [epoch, size]"]),
    (dict(TRAIN={"IMG_SIZES": [[0, 32], [1]]}), ["TRAIN.IMG_SIZES"]),
    (dict(TRAIN={"IMG_SIZES": [[0, 48]]}, MODEL={"TYPE": "timm", "NAME": "deit_tiny_patch16_224"}), ["TRAIN.IMG_SIZES", "one size"]),
    (dict(TEST={"IMG_SIZE": 48}, MODEL={"TYPE": "timm", "NAME": "deit_tiny_patch16_224"}), ["TEST.IMG_SIZE", "one size"]),
    (dict(TEST={"IMG_SIZE": 8}), ["TEST.IMG_SIZE", "32 and 4096"]),
    (dict(TEST={"CROPS": 3}), ["TEST.CROPS", "1 or 5"]),
])  # fmt: skip
def test_refused(write_config, values, parts):
    message = str(error_of("--cfg", write_config(**values)))
    assert all(part in message for part in parts), message


# Evaluation


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "x.pth"
    torch.save({"model": smallest_model(num_classes=3).state_dict(), "classes": ["0", "1", "2"]}, path)
    return path


def result(tmp_path):
    return json.loads((tmp_path / "output/fat_tiny/default/eval.json").read_text())


def test_five_crops_are_torchvision_s(digits):
    source = open_source("folder", "val", str(digits))
    resized = transforms.Resize(45, transforms.InterpolationMode.BICUBIC)(source.load(0)[0])
    views = eval_transform(40, "bicubic", 0.875, crops=5).picture(source.load(0)[0])
    wanted = [np.array(crop) for crop in transforms.FiveCrop(40)(resized)]
    assert len(views) == 5 and all(np.array_equal(view.pixels, crop) for view, crop in zip(views, wanted))
    assert len({crop.tobytes() for crop in wanted}) == 5
    assert np.array_equal(views[4].pixels, eval_transform(40, "bicubic", 0.875).picture(source.load(0)[0]).pixels)


def test_the_mean_of_probabilities_and_its_logarithm():
    torch.manual_seed(0)
    weight = torch.randn(48, 5)
    views, asked = torch.randn(3, 2, 3, 4, 4).unbind(0), []

    def model(images):
        asked.append(len(images))
        return images.flatten(1) @ weight

    plain = torch.stack([(v.flatten(1) @ weight).softmax(1) for v in views])
    mirrored = torch.stack([(v.flip(3).flatten(1) @ weight).softmax(1) for v in views])
    assert torch.allclose(predict_views(model, views, False), plain.mean(0).log(), atol=1e-4)
    assert torch.allclose(predict_views(model, views, True), ((plain + mirrored) / 2).mean(0).log(), atol=1e-4)
    assert torch.equal(predict_views(model, views[:1], False), views[0].flatten(1) @ weight)  # as it is
    assert set(asked) == {2}
    far = predict_views(lambda images: torch.tensor([[0.0, 500.0]]).repeat(len(images), 1), views, True)
    assert far.isfinite().all() and far[0, 0].item() == pytest.approx(-500)


def test_numbers_are_right(write_config, tmp_path, digits, checkpoint):
    """Against a loop of one image at a time: ten views of 40 px each."""
    model = smallest_model(num_classes=3).eval()
    model.load_state_dict(torch.load(checkpoint, weights_only=True)["model"])
    views = transforms.Compose([transforms.Resize(50, transforms.InterpolationMode.BICUBIC), transforms.TenCrop(40)])
    finish = create_transform(
        40, interpolation="bicubic", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
    ).transforms[2:]
    correct = loss = 0
    for file in sorted((digits / "val").rglob("*.png")):
        images = torch.stack([finish[1](finish[0](view)) for view in views(Image.open(file).convert("RGB"))])
        with torch.no_grad():
            mean = model(images).double().softmax(1).mean(0)
        correct += int(mean.argmax() == int(file.parent.name))
        loss -= mean[int(file.parent.name)].log().item()
    path = write_config(TEST={"IMG_SIZE": 40, "CROP_PCT": 0.8, "CROPS": 5, "FLIP": True})
    run("--cfg", path, "--eval", "--resume", checkpoint)
    found = result(tmp_path)
    assert (
        found["acc1"] == 100 * correct / 29
        and found["loss"] == pytest.approx(loss / 29, abs=3e-6)
        and found["num_images"] == 29
    )
    run("--cfg", path, "--eval", "--resume", checkpoint, "--fused")
    fused = result(tmp_path)
    assert fused["fused"] is True and fused["loss"] == pytest.approx(found["loss"], abs=1e-5) and fused["loss"] != 0
    run("--cfg", write_config(), "--eval", "--resume", checkpoint)
    assert result(tmp_path)["loss"] != pytest.approx(found["loss"], abs=1e-5)


def test_same_numbers_for_any_processes_and_batch(write_config, tmp_path, checkpoint):
    path, found = write_config(TEST={"IMG_SIZE": 48, "CROPS": 5, "FLIP": True}), []
    for world_size, batch_size in [(1, 1), (2, 3), (3, 64)]:
        launch(world_size, "--cfg", path, "--eval", "--resume", checkpoint, "--opts", "DATA.BATCH_SIZE", batch_size)
        found.append(result(tmp_path))
    assert found[0]["num_images"] == 29 and all(other == found[0] for other in found)


def test_training_evaluates_as_eval_does_and_changes_are_said(write_config, tmp_path, capsys):
    path = write_config(
        TEST={"IMG_SIZE": 48, "CROPS": 5, "FLIP": True, "CROP_PCT": 1.0}, AUG={"MIXUP": 0.0, "CUTMIX": 0.0, "SPLITS": 2}
    )
    run("--cfg", path)
    folder = tmp_path / "output/fat_tiny/default"
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    run("--cfg", path, "--eval", "--resume", folder / "last.pth")
    assert result(tmp_path)["raw"] == last["raw"]
    capsys.readouterr()
    changes = ["TEST.IMG_SIZE", "32", "TEST.CROPS", "1", "TEST.FLIP", "False"]
    run("--cfg", path, "--eval", "--resume", folder / "last.pth", "--opts", *changes)
    said = capsys.readouterr().out
    assert all(f"since training {key} changed" in said for key in changes[::2])


def test_speed_and_size_are_of_the_training_size(write_config, capsys):
    path = write_config(TEST={"IMG_SIZE": 64, "CROPS": 5}, TRAIN={"IMG_SIZES": STEPS}, MODEL={"FAT": {}})
    run("--cfg", path, "--throughput", "--batch-size", "2")
    run("--cfg", path, "--check")
    assert capsys.readouterr().out.count("parameters, 0.001 GMACs in convolutions") == 2


def test_a_rehearsed_evaluation_has_the_shape_of_the_real_one(write_config):
    task = create_task(load_config(write_config(TEST={"IMG_SIZE": 48, "CROPS": 5})))
    training = Examples(torch.zeros(6, 3, 32, 32), torch.zeros(3, dtype=torch.long), [""] * 3)
    assert task.evaluation_like(training).images.shape == (15, 3, 48, 48)
