"""The step: accumulation, precision, clipping, schedules, averages, and how processes share the work."""

import copy
import math
import os
import random

import numpy
import pytest
import timm
import torch
from timm.layers import convert_sync_batchnorm
from timm.utils import ModelEmaV3
from torch import nn

import models  # noqa: F401
from conftest import ONE_STAGE, error_of, launch, rest, run, run_processes
from engine.checkpoints.progress import Progress, Window
from engine.checkpoints.store import Checkpointer
from engine.session import Session
from engine.setup.model import create_model, prepare_model
from engine.setup.precision import NativePrecision, create_precision, resolve_dtype
from engine.training.delays import Delays
from engine.training.networks import Networks
from engine.training.nonfinite import FiniteGuard
from engine.training.optim import (
    LearningRate,
    Optimisation,
    ResumableOptimizer,
    create_lr_scheduler,
    create_optimizer,
    describe_trust_ratio,
)
from engine.training.plan import BatchPlan
from engine.training.recorder import Recorder
from engine.training.run_length import RunLength
from engine.training.saver import Saver
from engine.training.slow_rank import SlowRank
from engine.training.trainer import Trainer
from engine.training.training_data import TrainingData
from engine.training.waits import Waits
from utils.errors import ConfigError
from utils.macs import measure_complexity
from utils.metrics import ACC1
from utils.processes.launch import Launch
from utils.processes.peers import Peers
from utils.run_log import RunLog

CPU = torch.device("cpu")


class Regression:
    """A task without randomness or batch statistics, whose gradient is known."""

    def loss(self, model, batch):
        images, targets = batch
        return {"loss": (model(images).squeeze(1) - targets).square().mean()}


def make_trainer(
    model, batch_size, accumulation_steps, num_images, precision=None, clip_grad=0.0, average=None, rank=0, **changes
):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    plan = BatchPlan(num_images, batch_size, 1, accumulation_steps)
    scheduler = create_lr_scheduler(optimizer, LearningRate("step", 10, decay_epochs=100), plan.updates_per_epoch)
    launch, log, progress = (
        Launch(rank, 1 + (rank > 0)),
        RunLog(None, enabled=False),
        changes.get("progress", Progress()),
    )
    session = Session(None, launch, CPU, Peers(launch), None, log)
    precision = precision or NativePrecision(CPU, None)
    guard = FiniteGuard("raise", precision.skips_overflows, model, CPU)
    settings = dict(
        session=session, task=Regression(), data=TrainingData(None, None, plan, [], batch_size), networks=Networks(model, model, average),
        optim=Optimisation(optimizer, scheduler, precision, guard, clip_grad), progress=progress,
        recorder=Recorder(log, progress, plan, 10, 1, Delays(Waits(0, "pil", 1), SlowRank(session.peers.members, CPU)), CPU, {}),
        saver=Saver(Checkpointer(None, {}), log, progress, session.peers, 0, 0, 0.0), observers=[], length=RunLength(10, 0, 0.0, progress), seed=0,
    )  # fmt: skip
    return Trainer(**{**settings, **changes})


def data(num_images):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(num_images, 3, 4, 4, generator=generator), torch.randn(num_images, generator=generator)


def linear():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 1)).double()


@pytest.mark.parametrize("accumulation_steps, num_images", [(1, 24), (3, 24), (4, 24)])
def test_accumulation_is_the_large_batch_also_for_the_rest_of_the_epoch(accumulation_steps, num_images):
    """6 micro-batches of 4: with 4 steps the second update has 2 of them."""
    images, targets = (t.double() for t in data(num_images))
    trainer = make_trainer(linear(), 4, accumulation_steps, num_images)
    batches = iter(zip(images.split(4), targets.split(4)))
    reference = linear()
    position = 0
    for step in range(trainer.data.plan.updates_per_epoch):
        norm = trainer.update(step, batches, Window(CPU, Progress(), Launch()))
        size = 4 * trainer.data.plan.batches_in_update(step)
        loss = (
            (reference(images[position : position + size]).squeeze(1) - targets[position : position + size])
            .square()
            .mean()
        )
        gradients = torch.autograd.grad(loss, list(reference.parameters()))
        assert norm.item() == pytest.approx(torch.cat([g.flatten() for g in gradients]).norm().item(), rel=1e-12)
        with torch.no_grad():
            for parameter, gradient in zip(reference.parameters(), gradients):
                parameter -= 0.1 * gradient
        position += size
    assert position == num_images
    for ours, theirs in zip(trainer.networks.model.parameters(), reference.parameters()):
        assert torch.allclose(ours, theirs, rtol=1e-12)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
def test_clipping_bounds_the_true_gradient(dtype):
    """Clipped after unscaling, once per update: the step's length is LR x the bound, whatever the loss scale."""
    images, targets = data(8)
    model = linear().float()
    before = torch.cat([p.detach().flatten().clone() for p in model.parameters()])
    precision = NativePrecision(CPU, dtype)
    if dtype is torch.float16:  # a scale at which this model's first gradient does not overflow
        precision.scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    trainer = make_trainer(model, 4, 2, 8, precision, clip_grad=0.01)
    norm = trainer.update(0, iter(zip(images.split(4), targets.split(4))), Window(CPU, Progress(), Launch()))
    after = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert norm > 0.1 and (after - before).norm().item() == pytest.approx(0.1 * 0.01, rel=1e-3)


def test_float16_scaler_skips_an_overflow_and_lowers_the_scale():
    model, precision = linear().float(), NativePrecision(CPU, torch.float16)
    trainer = make_trainer(model, 4, 1, 4, precision)
    scale, before = precision.scaler.get_scale(), model[1].weight.detach().clone()
    images, targets = data(4)
    trainer.update(0, iter([(images, targets * 1e30)]), Window(CPU, Progress(), Launch()))
    assert torch.equal(model[1].weight.detach(), before) and precision.scaler.get_scale() < scale
    restored = NativePrecision(CPU, torch.float16)
    restored.load_state_dict(precision.state_dict())
    assert restored.scaler.get_scale() == precision.scaler.get_scale()


def test_float32_and_bfloat16_scale_nothing():
    for dtype in (None, torch.bfloat16):
        assert NativePrecision(CPU, dtype).scaler.get_scale() == 1.0 and NativePrecision(CPU, dtype).state_dict() == {}


def test_precision_by_config():
    assert resolve_dtype(True, "auto", CPU) is None and resolve_dtype(False, "float16", CPU) is None
    assert resolve_dtype(True, "bfloat16", CPU) is torch.bfloat16
    assert (
        create_precision(True, "float16", CPU).dtype is torch.float16
        and create_precision(False, "float16", CPU).dtype is None
    )


# Schedules and optimizers


def learning_rates(name="cosine", warmup_prefix=False, epochs=300, updates=10, **changes):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1e-3)
    settings = dict(warmup_epochs=20, warmup_lr=1e-6, min_lr=1e-5, decay_epochs=30, decay_rate=0.1)
    schedule = LearningRate(name, epochs, warmup_prefix=warmup_prefix, **{**settings, **changes})
    scheduler = create_lr_scheduler(optimizer, schedule, updates)
    rates = []
    for update in range(epochs * updates):
        scheduler.step_update(update)
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


@pytest.mark.parametrize("warmup_prefix", [False, True])
def test_cosine_with_and_without_the_jump_after_warmup(warmup_prefix):
    rates = learning_rates(warmup_prefix=warmup_prefix)
    start, length = (200, 2800) if warmup_prefix else (0, 3000)
    for update, rate in enumerate(rates):
        if update < 200:
            expected = 1e-6 + (1e-3 - 1e-6) * update / 200
        else:
            expected = 1e-5 + (1e-3 - 1e-5) * (1 + math.cos(math.pi * (update - start) / length)) / 2
        assert rate == pytest.approx(expected, rel=1e-9), update
    assert (rates[200] == pytest.approx(1e-3)) is warmup_prefix
    assert rates[-1] == pytest.approx(1e-5, rel=0.01)


def test_linear_and_step():
    linear_rates = learning_rates("linear", warmup_prefix=True)
    assert linear_rates[200 + 1400] == pytest.approx((1e-3 + 1e-5) / 2) and linear_rates[200] == pytest.approx(1e-3)
    step_rates = learning_rates("step")
    assert [step_rates[i] for i in (250, 299, 300, 650)] == pytest.approx([1e-3, 1e-3, 1e-4, 1e-5])


def test_the_rate_depends_on_the_update_alone():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1e-3)
    scheduler = create_lr_scheduler(optimizer, LearningRate("cosine", 300, 20, 1e-6, 1e-5), 10)
    scheduler.step_update(1234)
    assert optimizer.param_groups[0]["lr"] == learning_rates()[1234]


def optimizer_for(name="adamw", model=None, **changes):
    settings = dict(lr=1e-3, weight_decay=0.05, eps=1e-8, betas=(0.8, 0.99), momentum=0.7, layer_decay=1.0)
    return create_optimizer(model or timm.create_model("fat_tiny"), name, **{**settings, **changes})


def test_adamw_decays_matrices_only():
    optimizer = optimizer_for()
    assert (
        isinstance(optimizer, torch.optim.AdamW)
        and optimizer.defaults["betas"] == (0.8, 0.99)
        and optimizer.defaults["fused"]
    )
    for group in optimizer.param_groups:
        assert {p.ndim > 1 for p in group["params"]} == {group["weight_decay"] == 0.05}


def test_moments_come_back_in_the_weights_layout():
    """From a file of NCHW weights and an optimizer that was not fused: the step is that of the one which was saved."""
    torch.manual_seed(0)
    old, new = nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3)
    optimizers = [torch.optim.AdamW(old.parameters(), lr=0.1), None]
    for _ in range(2):
        old.weight.grad, old.bias.grad = torch.randn_like(old.weight), torch.randn_like(old.bias)
        optimizers[0].step()
    new.load_state_dict(old.state_dict())
    new.to(memory_format=torch.channels_last)
    optimizers[1] = torch.optim.AdamW(new.parameters(), lr=0.1, fused=True)
    ResumableOptimizer(optimizers[1]).load_state_dict(copy.deepcopy(ResumableOptimizer(optimizers[0]).state_dict()))
    gradient = torch.randn_like(old.weight)
    for layer, optimizer in zip((old, new), optimizers):
        layer.weight.grad, layer.bias.grad = (
            torch.empty_like(layer.weight).copy_(gradient),
            torch.zeros_like(layer.bias),
        )
        optimizer.step()
    assert torch.allclose(old.weight, new.weight, atol=1e-6)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_a_first_step_that_overflows_leaves_nothing_behind(name):
    model = nn.Linear(64, 64)
    before = model.weight.detach().clone()
    optimizer = optimizer_for(name, model=model)
    precision = NativePrecision(CPU, torch.float16)
    for gradient in (math.inf, 1e-3, 1e-3):
        precision.backward(model(torch.ones(1, 64)).sum() * 0)
        model.weight.grad.fill_(gradient * precision.scaler.get_scale())
        precision.clip(optimizer, model.parameters(), 0.0)
        precision.step(optimizer)
        optimizer.zero_grad()
    assert (model.weight - before).abs().max() < 0.1


def test_sgd_has_momentum_and_no_betas():
    assert optimizer_for("sgd").defaults["momentum"] == 0.7


def test_layer_decay_reaches_the_learning_rates():
    model = timm.create_model("fat_tiny")
    optimizer = optimizer_for(model=model, layer_decay=0.5)
    scheduler = create_lr_scheduler(optimizer, LearningRate("cosine", 10, warmup_prefix=True), 10)
    scheduler.step_update(0)
    rates = {id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]}
    assert rates[id(model.head.weight)] == 1e-3 and rates[id(model.patch_embed.conv1.conv[0].weight)] < 1e-4


def test_refused_optimizers():
    with pytest.raises(ConfigError, match="did you mean 'adamw'"):
        optimizer_for("adamww")
    with pytest.raises(ConfigError, match="NVIDIA apex from its repository"):
        optimizer_for("fusedadamw")


@pytest.mark.parametrize(
    "name", ["adamw", "sgd", "lamb", "lars", "adafactor", "lion", "rmsprop", "adabelief", "nadamw"]
)
def test_optimizers_resume_exactly(name):
    """Three steps, a checkpoint, three more: as six in one go; counters in the groups (lamb) included."""

    def steps(model, optimizer, first, last):
        for step in range(first, last):
            torch.manual_seed(step)
            for parameter in model.parameters():
                parameter.grad = torch.randn_like(parameter)
            optimizer.step()

    torch.manual_seed(0)
    linears = [nn.Linear(4, 4) for _ in range(3)]
    for model in linears[1:]:
        model.load_state_dict(linears[0].state_dict())
    whole, before = (optimizer_for(name, model) for model in linears[:2])
    steps(linears[0], whole, 0, 6)
    steps(linears[1], before, 0, 3)
    linears[2].load_state_dict(linears[1].state_dict())
    after = optimizer_for(name, linears[2])
    ResumableOptimizer(after).load_state_dict(copy.deepcopy(ResumableOptimizer(before).state_dict()))
    steps(linears[2], after, 3, 6)
    for a, b in zip(linears[0].parameters(), linears[2].parameters()):
        assert torch.equal(a, b)


def lamb_update(x, g, state, step, decays):
    """You et al. 2020 (arXiv 1904.00962), algorithm 2 with the identity as phi; in the order of the settings above."""
    lr, decay, eps, (beta1, beta2) = 1e-3, 0.05 * decays, 1e-8, (0.8, 0.99)
    state["m"] = beta1 * state.get("m", 0.0) + (1 - beta1) * g
    state["v"] = beta2 * state.get("v", 0.0) + (1 - beta2) * g**2
    r = state["m"] / (1 - beta1**step) / ((state["v"] / (1 - beta2**step)).sqrt() + eps) + decay * x
    return x - lr * (x.norm() / r.norm() if decays else 1.0) * r


def lars_update(x, g, state, step, decays):
    """You et al. 2017 (arXiv 1708.03888), algorithm 1, the LR taken out of the momentum, as is usual in PyTorch."""
    lr, decay, momentum, trust = 1e-3, 0.05 * decays, 0.7, 0.001
    local_lr = trust * x.norm() / (g.norm() + decay * x.norm()) if decays else 1.0
    state["v"] = momentum * state.get("v", 0.0) + local_lr * (g + decay * x)
    return x - lr * state["v"]


@pytest.mark.parametrize("name, update", [("lamb", lamb_update), ("lars", lars_update)])
def test_lamb_and_lars_are_the_papers(name, update):
    """Weights get a trust ratio, biases, which have no weight decay, none."""
    torch.manual_seed(0)
    model = nn.Linear(6, 5).double()
    values, states = [p.detach().clone() for p in model.parameters()], [{}, {}]
    optimizer = optimizer_for(name, model)
    for step in (1, 2, 3):
        for i, parameter in enumerate(model.parameters()):
            parameter.grad = 0.05 * torch.randn_like(parameter)  # of a norm below 1, from which on timm's LAMB scales
            values[i] = update(values[i], parameter.grad, states[i], step, decays=i == 0)
        optimizer.step()
    for parameter, value in zip(model.parameters(), values):
        torch.testing.assert_close(parameter.detach(), value, rtol=1e-7, atol=1e-9)


def test_what_the_trust_ratio_scales_is_said():
    model = nn.Linear(2, 2)
    assert describe_trust_ratio(optimizer_for("lars", model)).startswith("LARS's trust ratio scales 1 of 2 tensors")
    assert "whose norm is above 1.0 is scaled down" in describe_trust_ratio(optimizer_for("lamb", model))
    assert "it scales none" in describe_trust_ratio(optimizer_for("lamb", model, weight_decay=0.0))
    assert describe_trust_ratio(optimizer_for("adamw", model)) == ""


# Models


def test_macs_of_b0():
    """The paper's 0.7 G counts convolutions only."""
    complexity = measure_complexity(timm.create_model("fat_b0"), (3, 224, 224))
    assert complexity.params == 4494488
    assert complexity.conv_macs / 1e9 == pytest.approx(0.701, abs=5e-4)
    assert complexity.macs / 1e9 == pytest.approx(0.754, abs=5e-4)


def build(model_type, name, **fat):
    return create_model(model_type, name, num_classes=3, drop_rate=0.0, drop_path_rate=0.0, img_size=32, fat=fat)


def test_timm_models_by_name():
    assert build("timm", "resnet18").get_classifier().out_features == 3
    assert build("timm", "deit_tiny_patch16_224").patch_embed.img_size == (32, 32)
    with pytest.raises(ConfigError, match="resnet18"):
        build("timm", "resnet188")


def test_refused_models():
    with pytest.raises(ConfigError, match="no embed_dims, depths, num_heads; did you mean 'fat_b0'"):
        build("fat", "fat_b00")
    with pytest.raises(ConfigError, match="10 is not divisible by num_heads 3"):
        build(
            "fat",
            "mine",
            embed_dims=[10],
            depths=[1],
            num_heads=[3],
            kernel_sizes=[3],
            window_sizes=[1],
            mlp_ratios=[1],
            mlp_kernel_sizes=[3],
        )
    with pytest.raises(ConfigError, match="depths has 3 values for 4 stages"):
        build("fat", "fat_b0", depths=[1, 1, 1])
    with pytest.raises(ConfigError, match="no activation checkpointing"):
        prepare_model(nn.Linear(1, 1), CPU, channels_last=False, use_checkpoint=True)


def test_batchnorm_is_not_synchronised_without_gpus():
    model = prepare_model(build("fat", "fat_tiny"), CPU, channels_last=True, use_checkpoint=True)
    assert not any(isinstance(m, nn.SyncBatchNorm) for m in model.modules())
    assert all(stage.grad_checkpointing for stage in model.layers)
    assert model.layers[0].blocks[0].ffn.fc1.weight.is_contiguous(memory_format=torch.channels_last)


def test_average_follows_the_weights():
    model = linear()
    ema = ModelEmaV3(model, decay=0.9)
    trainer = make_trainer(model, 4, 1, 8, average=ema)
    images, targets = (t.double() for t in data(8))
    batches = iter(zip(images.split(4), targets.split(4)))
    trainer.update(0, batches, Window(CPU, Progress(), Launch()))
    trainer.progress.updates += 1
    first = model[1].weight.detach().clone()
    assert torch.equal(ema.module[1].weight, first)  # timm copies at the first update
    trainer.update(1, batches, Window(CPU, Progress(), Launch()))
    assert torch.allclose(ema.module[1].weight, 0.9 * first + 0.1 * model[1].weight, rtol=1e-12)


# Whole runs


def final_weights(config_path, tag):
    output = config_path.parent / "output/fat_tiny" / tag / "last.pth"
    return torch.load(output, weights_only=True)


@pytest.mark.parametrize("switch", [
    ["AMP.DTYPE", "bfloat16"], ["AMP.DTYPE", "float16"], ["TRAIN.CHANNELS_LAST", "False"], ["TRAIN.USE_CHECKPOINT", "True"],
    ["DATA.NUM_WORKERS", "2"], ["TRAIN.OPTIMIZER.NAME", "sgd"], ["TRAIN.LAYER_DECAY", "0.7"], ["AUG.MIXUP_MODE", "elem"],
    ["MODEL.FAT.interaction", "bidirectional"],
])  # fmt: skip
def test_switches_train(write_config, switch):
    path = write_config(TRAIN={"EPOCHS": 1, "WARMUP_EPOCHS": 0})
    run("--cfg", path, "--opts", *switch, "--tag", "s")
    checkpoint = final_weights(path, "s")
    assert checkpoint["progress"]["epoch"] == 1
    assert all(torch.isfinite(v).all() for v in checkpoint["model"].values())


@pytest.mark.parametrize("backend", ["aot_eager", rest("inductor")])
def test_compiled_training_gives_the_same_weights(backend, write_config, tmp_path, monkeypatch, capsys):
    """One graph for training and one for evaluation: of both models, and of the last batch, which is smaller."""
    original = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self, mode, **how: original(self, backend=backend, **how))
    path = write_config(
        MODEL=ONE_STAGE,
        TRAIN={"EPOCHS": 1, "WARMUP_EPOCHS": 0, "BASE_LR": 1e-3},
    )
    run("--cfg", path, "--tag", "eager")
    torch._dynamo.reset()
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    run("--cfg", path, "--tag", "compiled", "--opts", "TRAIN.COMPILE", "True")
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] - before == 2
    assert "torch.compile: the first update took" in capsys.readouterr().out
    folder = tmp_path / "output/one_stage"
    eager, compiled = (
        torch.load(folder / tag / "last.pth", weights_only=True)["model"] for tag in ("eager", "compiled")
    )
    assert list(eager) == list(compiled)
    for key, value in eager.items():
        assert torch.allclose(value, compiled[key], atol=1e-4), key


def test_the_compiler_s_mode_reaches_it(write_config, monkeypatch):
    calls = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, **how: calls.append(how))
    path = write_config(TRAIN={"EPOCHS": 1, "WARMUP_EPOCHS": 0, "COMPILE": True, "COMPILE_MODE": "reduce-overhead"})
    run("--cfg", path)
    assert calls == [{"mode": "reduce-overhead", "dynamic": False}] * 2  # the model and its average


def test_timm_model_trains_with_the_same_engine(write_config, tmp_path):
    path = write_config(MODEL={"TYPE": "timm", "NAME": "resnet10t"}, TRAIN={"EPOCHS": 1, "WARMUP_EPOCHS": 0})
    run("--cfg", path)
    assert (tmp_path / "output/resnet10t/default/best.pth").exists()


def test_processes_learn_what_one_does(write_config, capfd):
    """The same updates, mixed and with paths dropped alike, of two processes and of three with 4, 2 and 2 images. BatchNorm's
    statistics are per process on the CPU, so the model here has none.
    """
    path = write_config(
        DATA={"BATCH_SIZE": 4},
        MODEL={"TYPE": "timm", "NAME": "test_vit", "DROP_PATH_RATE": 0.3, "DROP_RATE": 0.1},
        TRAIN={"EPOCHS": 1, "WARMUP_EPOCHS": 0, "BASE_LR": 1e-2, "TOTAL_BATCH_SIZE": 8},
    )
    run("--cfg", path, "--tag", "1")
    for world_size in (2, 3):
        launch(world_size, "--cfg", path, "--tag", world_size)
    assert "TRAIN.TOTAL_BATCH_SIZE 8 over 3 processes: micro-batches of 2 or 4 images" in capfd.readouterr().out
    folder = path.parent / "output/test_vit"
    one, *others = (torch.load(folder / tag / "last.pth", weights_only=True)["model"] for tag in "123")
    for key, value in one.items():
        assert all(torch.allclose(value, other[key], atol=1e-5) for other in others), key


def test_gradients_are_synchronised_once_per_update(write_config, tmp_path):
    """With two micro-batches, the first one's gradients stay on their process."""
    path = write_config(DATA={"BATCH_SIZE": 4}, TRAIN={"EPOCHS": 1, "WARMUP_EPOCHS": 0, "ACCUMULATION_STEPS": 2})
    run_processes(2, _record_synchronisation, path, tmp_path / "synchronised")
    assert (tmp_path / "synchronised").read_text() == "01" * 3 + "1"  # 7 micro-batches: the last update has one


def _record_synchronisation(path, output):
    from engine.tasks.classification import Classification

    original, seen = Classification.loss, []

    def loss(self, model, batch):
        if hasattr(model, "require_backward_grad_sync"):  # the preflight's copy has not
            seen.append(str(int(model.require_backward_grad_sync)))
        return original(self, model, batch)

    Classification.loss = loss
    run("--cfg", path)
    if os.environ["RANK"] == "0":
        output.write_text("".join(seen))


def test_draws_are_a_function_of_epoch_update_micro_batch_and_rank():
    def draws(epoch, rank):
        found = []

        class Drawing(Regression):
            def loss(self, model, batch):
                found.append((torch.rand(1).item(), random.random(), numpy.random.rand()))
                return super().loss(model, batch)

        trainer = make_trainer(linear(), 4, 2, 16, rank=rank, task=Drawing(), progress=Progress(epoch=epoch))
        images, targets = (t.double() for t in data(16))
        batches = iter(zip(images.split(4), targets.split(4)))
        for step in range(2):
            torch.rand(3)  # what ran before does not matter
            trainer.update(step, batches, Window(CPU, Progress(), Launch()))
        return found

    assert draws(0, 0) == draws(0, 0)
    everything = draws(0, 0) + draws(0, 1) + draws(1, 0)
    assert len(set(everything)) == len(everything) == 12


def test_every_setting_reaches_its_place(write_config, monkeypatch):
    """Values that are nobody's default, looked for in the parts that the trainer gets."""
    caught = {}
    monkeypatch.setattr(Trainer, "fit", lambda self: caught.update(trainer=self))
    path = write_config(
        SEED=7, PRINT_FREQ=3, SAVE_FREQ=4,
        DATA={"BATCH_SIZE": 4, "ON_ERROR": "skip", "EXIF": False, "OUTSIDE_LINKS": True},
        MODEL={"DROP_RATE": 0.25, "DROP_PATH_RATE": 0.3, "LABEL_SMOOTHING": 0.2, "FAT": {"interaction": "add"}},
        TRAIN={
            "EPOCHS": 10, "WARMUP_EPOCHS": 2, "BASE_LR": 0.64, "WARMUP_LR": 0.064, "MIN_LR": 0.0064, "WEIGHT_DECAY": 0.11,
            "CLIP_GRAD": 1.5, "LAYER_DECAY": 0.5, "ACCUMULATION_STEPS": 2, "SAVE_EVERY_STEPS": 5, "SAVE_EVERY_MINUTES": 7.5,
            "NONFINITE": "skip", "CHANNELS_LAST": False, "COMPILE": True, "COMPILE_MODE": "max-autotune",
            "OPTIMIZER": {"EPS": 1e-5, "BETAS": [0.7, 0.8]},
        },
        EMA={"ENABLED": True, "DECAY": 0.77, "WARMUP": True},
        AUG={
            "MIXUP": 0.3, "CUTMIX": 0.6, "MIXUP_PROB": 0.7, "MIXUP_SWITCH_PROB": 0.4, "MIXUP_MODE": "pair", "REPROB": 0.35,
            "REMODE": "const", "RECOUNT": 2, "AUTO_AUGMENT": "rand-m7-n3", "HFLIP": 0.15, "SCALE": [0.4, 0.9], "RATIO": [0.8, 1.2],
        },
        TEST={"CROP_PCT": 0.5},
    )  # fmt: skip
    run("--cfg", path)
    trainer = caught["trainer"]
    optim, networks = trainer.optim, trainer.networks
    saver = trainer.saver
    assert (saver.every_epochs, saver.every_steps, saver.every_minutes) == (4, 5, 7.5)
    assert (trainer.seed, trainer.recorder.every, optim.guard.policy) == (7, 3, "skip")
    for loader in (trainer.data.train_loader, trainer.data.val_loader):
        dataset = loader.dataset
        assert (dataset.on_error, dataset.source.decode.keywords, dataset.source.inside) == (
            "skip",
            {"exif": False},
            "",
        )
        assert loader.finish.memory_format is torch.contiguous_format
    assert (trainer.epochs, optim.clip_grad, networks.compile_mode) == (10, 1.5, "max-autotune")
    assert (trainer.data.plan.total_batch_size, trainer.data.plan.updates_per_epoch) == (8, 8)
    assert trainer.data.train_loader.schedule.seed == 7

    groups = optim.optimizer.param_groups
    assert {g["weight_decay"] for g in groups} == {0.0, 0.11} and min(g["lr_scale"] for g in groups) < 0.1
    assert all((g["eps"], g["betas"]) == (1e-5, (0.7, 0.8)) for g in groups)
    head = next(g for g in groups if any(p is networks.model.head.weight for p in g["params"]))
    for update, rate in [(0, 0.001), (8, 0.0055), (79, 0.0001)]:  # per 512 images, for 8
        optim.lr_scheduler.step_update(update)
        assert head["lr"] == pytest.approx(rate, rel=0.05)

    ema = networks.average
    assert (ema.decay, ema.use_warmup) == (0.77, True)
    mixup = trainer.task.mixup
    assert (mixup.mixup_alpha, mixup.cutmix_alpha, mixup.mix_prob, mixup.switch_prob) == (0.3, 0.6, 0.7, 0.4)
    assert (mixup.mode, mixup.label_smoothing, mixup.num_classes) == ("pair", 0.2, 3)
    assert networks.model.head_drop.p == 0.25 and networks.model.layers[3].blocks[
        0
    ].drop_path.drop_prob == pytest.approx(0.3)
    assert networks.model.layers[0].blocks[0].attn.interaction == "add"

    steps = trainer.data.train_loader.dataset.transform.steps
    crop, flip, policy, erasing = steps["crop and resize"], steps["flip"], steps["augment"], steps["erase"].erasing
    assert (crop.scale, crop.ratio, flip.p) == ((0.4, 0.9), (0.8, 1.2), 0.15)
    assert policy.num_layers == 3 and {op.magnitude for op in policy.ops} == {7}
    assert (erasing.probability, erasing.max_count) == (0.35, 2)
    assert trainer.data.val_loader.dataset.transform.steps["resize"].size in (64, (64, 64))


def test_label_smoothing_without_mixup(write_config, monkeypatch):
    caught = {}
    monkeypatch.setattr(Trainer, "fit", lambda self: caught.update(trainer=self))
    run("--cfg", write_config(AUG={"MIXUP": 0.0, "CUTMIX": 0.0}, MODEL={"LABEL_SMOOTHING": 0.3}))
    task = caught["trainer"].task
    assert task.mixup is None and task.criterion.smoothing == 0.3


def test_synchronised_batchnorm_keeps_activations():
    """timm fuses activations into its BatchNorm, which torch's own conversion loses."""
    torch.manual_seed(0)
    images = torch.randn(2, 3, 64, 64)
    for name in ("efficientnet_b0", "fat_tiny"):
        model = timm.create_model(name).eval()
        before = model(images)
        converted = convert_sync_batchnorm(model)
        assert any(isinstance(m, nn.SyncBatchNorm) for m in converted.modules())
        assert torch.equal(converted(images), before)


def test_weights_that_evaluate_to_nan_are_not_saved(write_config, tmp_path):
    """One update per epoch whose loss and gradient are finite and whose step is not."""
    path = write_config(TRAIN={"EPOCHS": 1, "WARMUP_EPOCHS": 0}, DATA={"BATCH_SIZE": 60})
    run("--cfg", path)
    last = tmp_path / "output/fat_tiny/default/last.pth"
    before = last.read_bytes()
    error = error_of("--cfg", path, "--opts", "TRAIN.EPOCHS", 2, "TRAIN.OPTIMIZER.EPS", 1e-300, "TRAIN.BASE_LR", 1e30)
    assert error.status == 4 and "validation" in str(error) and last.read_bytes() == before


def test_the_best_weights_metrics_are_kept():
    """Of the epoch and the weights that were best, which need not be the last ones nor the raw ones."""
    trainer = make_trainer(nn.Linear(1, 1), 4, 1, 24)
    trainer.task.primary = ACC1
    trainer.list_unreadable = lambda: None
    epochs = [(50.0, 60.0), (55.0, 58.0)]
    for raw, ema in epochs:
        results = {
            name: {"acc1": acc1, "acc5": 99.0, "loss": 1.0, "num_images": 4}
            for name, acc1 in (("raw", raw), ("ema", ema))
        }
        trainer.finish_epoch(1.0, results, 1.0)
    assert (
        trainer.progress.best == {"acc1": 60.0, "weights": "ema", "epoch": 0}
        and trainer.progress.best_metrics["acc1"] == 60.0
    )
