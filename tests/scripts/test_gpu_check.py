"""scripts/gpu_check.py: every stage goes through on the CPU, and fails where something is wrong."""

import contextlib
import importlib
import json
import math
import os
import signal
import subprocess
import sys
import time
import types

import pytest
import torch

import gpu_check
from conftest import ROOT, SMALLEST, let_fat_tiny_be, rest
from models.fat import FAT
from models.layers import FASA, LayerNorm, norm
from parts.gpu_check.main_runs import count_differences
from parts.gpu_check.setting import Check, Setting, at_least, below, equal, measured
from parts.gpu_check.stage_process import run_stage
from utils.errors import ConfigError


def new_setting(folder, dry_run=True, seconds=300.0):
    return Setting(dry_run, folder, time.monotonic() + seconds)


def module_of(name):
    return importlib.import_module(f"parts.gpu_check.{name}")


def failed(name, folder):
    return {check.name for check in module_of(name).checks(new_setting(folder)) if not check.passed}


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    """--dry-run hides GPUs by the environment; its model is the smallest."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    let_fat_tiny_be(monkeypatch, SMALLEST)


@pytest.mark.parametrize("precisions", [["float32"], rest(["float32", "bfloat16"])], ids=len)
def test_every_stage_passes_on_the_cpu(tmp_path, monkeypatch, capsys, precisions):
    """Runs are killed and resumed in one number format, or, as the command does it, in two."""
    resumed = module_of("resumed_runs")
    monkeypatch.setattr(resumed, "PRECISIONS", {name: resumed.PRECISIONS[name] for name in precisions})
    status = gpu_check.main(["--dry-run", "--output", str(tmp_path)])
    printed = capsys.readouterr().out.splitlines()
    checks = json.loads((tmp_path / "results.json").read_text())["checks"]
    assert [check for check in checks if not check["passed"]] == [] and status == 0
    assert list(dict.fromkeys(check["stage"] for check in checks)) == list(gpu_check.STAGES)
    assert len(printed) == len(checks) + 1 and all(line.startswith("PASS ") for line in printed[:-1])
    assert "PASS values.pixels that differ 0 =0" in printed


@pytest.mark.parametrize("native, dtype", [(True, torch.bfloat16), (False, torch.float32)])
def test_a_dry_run_times_what_the_processor_does_not_emulate(tmp_path, monkeypatch, native, dtype):
    speed = module_of("model_speed")
    monkeypatch.setattr(speed, "is_native_on_cpu", lambda dtype: native)
    assert speed.number_format(new_setting(tmp_path)) is dtype
    assert speed.number_format(new_setting(tmp_path, dry_run=False)) is torch.bfloat16


def test_without_a_gpu_it_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="torch sees no GPU.*--dry-run"):
        gpu_check.main(["--output", str(tmp_path)])
    with pytest.raises(ConfigError, match="did you mean 'values'"):
        gpu_check.main(["--stage", "value"])


WITHOUT = """
import importlib.abc, sys
class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in %r:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
sys.path.insert(0, %r)
import gpu_check
gpu_check.run_script(lambda: gpu_check.main(["--dry-run"]))
"""


def test_the_packages_to_bring_are_those_that_are_missing():
    """Where the four that the page names are absent, a line names the first, and all of them."""
    missing = set(gpu_check.WHEELS.split())
    program = WITHOUT % (missing, str(ROOT / "scripts"))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "yacs: cannot be imported" in done.stderr and f"pip install {gpu_check.WHEELS}" in done.stderr
    assert f" {gpu_check.WHEELS}\n" in (ROOT / "docs/performance.md").read_text()


# What is wrong fails


def half_precision_convolutions(monkeypatch):
    exact = torch.conv2d
    monkeypatch.setattr(
        torch, "conv2d", lambda x, w: exact(x, w).half().float() if x.dtype is torch.float32 else exact(x, w)
    )


def another_weight_after_the_first_model(monkeypatch):
    new_model, made = Setting.new_model, []

    def changed(self, *args, **kwargs):
        model = new_model(self, *args, **kwargs)
        made.append(model)
        if len(made) > 1:
            model.head.weight.data.mul_(1.5)
        return model

    monkeypatch.setattr(Setting, "new_model", changed)


def copied_tokens(monkeypatch):
    to_tokens = FASA.to_tokens
    monkeypatch.setattr(FASA, "to_tokens", lambda self, x: to_tokens(self, x).clone())


def turned_maps(monkeypatch):
    forward = LayerNorm.forward
    monkeypatch.setattr(LayerNorm, "forward", lambda self, x: forward(self, x).contiguous())


def another_deployed_form(monkeypatch):
    import models

    fuse = models.fuse

    def changed(model, dtype):
        fused = fuse(model, dtype)
        with torch.no_grad():
            next(fused.parameters()).mul_(1.2)
        return fused

    monkeypatch.setattr(models, "fuse", changed)


def another_norm(monkeypatch):
    right = norm.norm_channels_last
    monkeypatch.setattr(norm, "norm_channels_last", lambda *args: 1.05 * right(*args))


def another_weight_decay_after_the_kill(monkeypatch):
    stage = module_of("resumed_runs")
    monkeypatch.setattr(stage, "PRECISIONS", {"float32": ("AMP.ENABLED", "False")})
    started = []

    def command(*args):
        started.append(args)
        decay = "0.5" if len(started) > 2 else "0.05"
        return [*module_of("main_runs").command(*args), "TRAIN.WEIGHT_DECAY", decay]

    monkeypatch.setattr(stage, "command", command)


def an_update_that_reads_the_loss(monkeypatch):
    from engine.training.nonfinite import FiniteGuard

    accepts = FiniteGuard.accepts
    monkeypatch.setattr(
        FiniteGuard,
        "accepts",
        lambda self, step, loss, grad_norm: bool(loss.item()) and accepts(self, step, loss, grad_norm),
    )


def batchnorm_of_its_own(monkeypatch):
    monkeypatch.setattr(module_of("process_group"), "synchronise_batchnorm", lambda model: model)


def a_break_in_the_graph(monkeypatch):
    forward_head = FAT.forward_head

    def broken(self, x, **kwargs):
        torch._dynamo.graph_break()
        return forward_head(self, x, **kwargs)

    monkeypatch.setattr(FAT, "forward_head", broken)
    monkeypatch.setattr(module_of("compiled_models"), "UPDATES", 1)


def no_kernels(monkeypatch):
    monkeypatch.setattr(module_of("kernel_profile"), "kernels_of", lambda *args: [])


def no_speed(monkeypatch):
    monkeypatch.setattr(module_of("model_speed"), "images_per_second", lambda *args: {"plain": 1.0, "eager": math.nan})


@pytest.mark.parametrize("stage, spoil, names", [
    ("surroundings", half_precision_convolutions, {"exact convolution", "deterministic convolution"}),
    ("values", another_weight_after_the_first_model, {"float32 NCHW logits", "float32 NHWC gradients", "TF32 NCHW logits"}),
    ("memory_layouts", copied_tokens, {"float32 copies in attention", "bfloat16 copies in attention"}),
    ("memory_layouts", turned_maps, {"float32 leaves not channels_last", "bfloat16 leaves not channels_last"}),
    ("deployed_form", another_deployed_form, {"float32 logits"}),
    ("norm_kernel", another_norm, {"float32 values and gradients", "bfloat16 values and gradients"}),
    rest("resumed_runs", another_weight_decay_after_the_kill, {"float32 differences"}),
    ("waits_for_gpu", an_update_that_reads_the_loss, {"float32 waits", "bfloat16 waits"}),
    ("process_group", batchnorm_of_its_own, {"two: no BatchNorm of its own", "two: gradients", "two: buffers"}),
    rest("compiled_models", a_break_in_the_graph, {"default graph breaks", "default graphs of training"}),
    ("kernel_profile", no_kernels, {"inference kernels", "train kernels"}),
    ("model_speed", no_speed, {"fat_tiny inference 2 eager, images/s", "fat_tiny train 2 eager, images/s"}),
])  # fmt: skip
def test_what_is_wrong_fails(stage, spoil, names, monkeypatch, tmp_path):
    spoil(monkeypatch)
    assert names <= failed(stage, tmp_path)


def test_other_counts_fail(monkeypatch, tmp_path):
    stage = module_of("equal_evaluation")
    figures = {"num_images": 256, "acc1": 20.0, "acc5": 100.0, "loss": 1.6}

    class Run:
        """Its --eval on the device counts one image less."""

        def __init__(self, setting, argv, log):
            self.folder = stage.run_folder(setting, argv[argv.index("--tag") + 1])

        def wait(self):
            self.folder.mkdir(parents=True)
            acc1 = 20.0 - 100 / 256 * (self.folder.name == "device")
            (self.folder / "eval.json").write_text(json.dumps(dict.fromkeys(["raw", "ema"], {**figures, "acc1": acc1})))

    monkeypatch.setattr(stage, "MainRun", Run)
    assert failed("equal_evaluation", tmp_path) == {"raw acc1", "ema acc1"}


def test_not_a_number_is_within_no_bound():
    assert not below("x", math.nan, 1.0).passed and not at_least("x", math.nan, 1.0).passed
    assert not measured("x", math.inf).passed and measured("x", "y").passed and not equal("x", 1, 2).passed


def test_states_are_compared_to_the_bit():
    state = {"model": {"w": torch.zeros(2)}, "epochs": [1, 2.0], "name": "a"}
    other = {"model": {"w": torch.tensor([0.0, 1e-45])}, "epochs": [1, 2.5], "more": 0}
    assert count_differences(state, dict(state)) == 0
    assert count_differences(state, other) == 4  # the tensor, a number, and two keys that only one has
    assert count_differences(torch.zeros(1), torch.zeros(1, dtype=torch.float64)) == 1


# On a pretended GPU


def test_goals_are_for_the_gpus_they_were_set_for(monkeypatch, tmp_path):
    stage, timed = module_of("model_speed"), []

    def speeds(setting, group):
        timed.append(group)
        if group.model == "fat_b3":
            raise torch.OutOfMemoryError
        return {"plain": 1.0, **{form: 4.0 + number for number, form in enumerate(group.forms)}}

    monkeypatch.setattr(stage, "images_per_second", speeds)
    for capability, bounds in (((9, 0), {">=5", ">=3"}), ((8, 0), {"none"})):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda capability=capability: capability)
        checks = {check.name: check for check in stage.checks(new_setting(tmp_path, dry_run=False))}
        goals = [check for name, check in checks.items() if "ratio to the plain form" in name]
        assert {check.bound for check in goals} == bounds and all(check.passed for check in goals)
        assert not checks["fat_b0 ahead of repvit_m1"].passed
        assert {group.model for group in timed} == {"fat_b0", "fat_b1", "fat_b2", "fat_b3"}
        assert "memory" in checks["fat_b3 train 128 eager, eager, torch's norm"].value
    timed.clear()
    list(stage.checks(new_setting(tmp_path, dry_run=False, seconds=20.0)))
    assert timed and all(group.seconds <= 20 for group in timed)  # nothing that there is no time for


# A stage's process


def hang(setting):
    yield measured("first", 1.0)
    time.sleep(100)


def die(setting):
    yield measured("first", 1.0)
    os.kill(os.getpid(), signal.SIGKILL)


def raise_error(setting):
    yield measured("first", 1.0)
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


@pytest.mark.parametrize("checks, seconds, name, value", [
    (hang, 0.5, "in time", ""), (die, 60, "exit status", "-9"), (raise_error, 60, "exit status", "1 (RuntimeError: CUDA error: an illegal"),
    (lambda setting: iter(()), 60, "checks", "0"),
])  # fmt: skip
def test_a_stage_that_does_not_end_well_fails(checks, seconds, name, value, monkeypatch, tmp_path):
    """What it has said before that counts."""
    monkeypatch.setitem(sys.modules, "parts.gpu_check.pretended", types.SimpleNamespace(checks=checks))
    found = run_stage("pretended", new_setting(tmp_path, seconds=seconds))
    assert [check.name for check in found] == (["first", name] if name != "checks" else [name])
    assert not found[-1].passed and str(found[-1].value).startswith(value)


def test_a_stage_ends_with_all_that_it_started(monkeypatch, tmp_path):
    def checks(setting):
        child = os.fork()
        if not child:
            time.sleep(100)
            os._exit(0)
        yield measured("child", child)

    monkeypatch.setitem(sys.modules, "parts.gpu_check.pretended", types.SimpleNamespace(checks=checks))
    (check,) = run_stage("pretended", new_setting(tmp_path))
    deadline = time.monotonic() + 60
    while is_running(check.value) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_running(check.value)


def is_running(pid):
    with contextlib.suppress(OSError):
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    return False


def test_a_stage_in_a_new_python(monkeypatch, tmp_path):
    """As on a GPU: what is handed over finds its way there."""
    monkeypatch.setattr(Setting, "start_method", "spawn")
    found = run_stage("surroundings", new_setting(tmp_path))
    assert len(found) > 5 and all(isinstance(check, Check) and check.passed for check in found)
