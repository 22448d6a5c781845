"""--throughput: what it waits for, and what it says of it."""

import pytest
import torch

import engine.commands.throughput as command
from conftest import run

GPU = torch.device("cuda", 0)


class PretendedGpu:
    """A clock in seconds, a GPU beside it that takes 0.8 ms for a batch, and 1 ms of the CPU to start one."""

    def __init__(self):
        self.now = self.done = 0.0
        self.started = self.waits = 0

    def start_batch(self, images):
        self.started += 1
        self.now += 0.001
        self.done = max(self.now, self.done) + 0.0008

    def wait(self, device):
        self.waits += 1
        self.now = max(self.now, self.done)


@pytest.fixture
def gpu(monkeypatch):
    pretended = PretendedGpu()
    monkeypatch.setattr(command, "WARMUP_SECONDS", 3)  # by its clock
    monkeypatch.setattr(command, "MEASURED_SECONDS", 10)
    monkeypatch.setattr(command.time, "perf_counter", lambda: pretended.now)
    monkeypatch.setattr(torch.cuda, "synchronize", pretended.wait)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: 3 * 2**20)
    monkeypatch.setattr(command, "to_device", lambda images, device, channels_last: images)
    monkeypatch.setattr(command, "forget_memory", lambda device: None)
    return pretended


def test_images_per_second_are_of_batches_without_a_wait_between_them(gpu):
    speed = command.measure_throughput(gpu.start_batch, GPU, 1, 4, channels_last=False)
    assert speed.latency_ms == pytest.approx(1.8)
    assert speed.images_per_second == pytest.approx(1000, rel=0.01)  # 1 / 1.8 ms are 556
    assert speed.stretch > 500 and speed.batches == command.MAX_BATCHES
    single_batches = gpu.waits - command.STRETCHES
    assert gpu.started == single_batches + command.STRETCHES * speed.stretch
    assert speed.memory_mib == 3


def test_both_figures_are_named(gpu):
    speed = command.measure_throughput(gpu.start_batch, GPU, 1, 4, channels_last=False)
    assert str(speed) == (
        "998.6 images/s (median of 5 stretches of 556 batches, each stretch waited for) | "
        "latency 1.80 ms per batch (median of 100, each batch waited for) | peak memory 3 MiB"
    )


def test_on_a_cpu_both_say_the_same(monkeypatch):
    """There is nothing to wait for: a stretch of n batches takes n latencies."""
    monkeypatch.setattr(command.time, "perf_counter", lambda: clock[0])
    clock, calls = [0.0], []

    def model(images):
        calls.append(images.shape)
        clock[0] += 0.25

    speed = command.measure_throughput(model, torch.device("cpu"), 8, 4, channels_last=True)
    assert (speed.images_per_second, speed.latency_ms) == (32, 250) and set(calls) == {(8, 3, 4, 4)}


def test_slow_batches_are_a_stretch_each(write_config, monkeypatch, capsys):
    monkeypatch.setattr(command, "WARMUP_SECONDS", 0)
    monkeypatch.setattr(command, "MEASURED_SECONDS", 0)
    run("--cfg", write_config(), "--throughput", "--batch-size", 2)
    assert "images/s (median of 5 stretches of 1 batch, each stretch waited for) | latency" in capsys.readouterr().out
