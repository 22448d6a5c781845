"""DATA.BATCH_SIZE auto: what is tried, what fits, and that a run keeps what it has chosen."""

from types import SimpleNamespace

import pytest
import torch

from conftest import ROOT, Stop, assert_same, load, run, stop_at_update
from engine.session import open_session
from engine.training import batch_size
from engine.training.batch_size import (
    Rehearsal,
    batch_size_of_run,
    bytes_of_image,
    candidates,
    extrapolated,
    fits_gpu,
    largest,
)
from utils.config import batch_size_of, load_config
from utils.errors import ConfigError, ShortageError


@pytest.fixture
def config(write_config):
    """Of updates of 16 images, so that 16 and 8 images at a time are tried."""
    write = write_config
    return write(DATA={"BATCH_SIZE": "auto"}, TRAIN={"TOTAL_BATCH_SIZE": 16, "EPOCHS": 1, "WARMUP_EPOCHS": 0})


@pytest.mark.parametrize("total, processes, in_pairs, expected", [
    (1024, 1, True, [1024, 512, 256, 128, 64, 32, 16, 8]), (1024, 8, True, [128, 64, 32, 16, 8]),
    (4096, 2, True, [1024, 512, 256, 128, 64, 32, 16, 8]), (1000, 1, False, [1000, 500, 250, 125, 50, 25, 10]),
    (1000, 1, True, [1000, 500, 250, 100, 50, 20, 10]), (4, 1, True, [4]), (24, 4, True, [6]),
    (1024, 12, True, [86, 44, 22, 12]), (1024, 3, False, [342, 171, 86, 43, 22, 11]),
])  # fmt: skip
def test_what_is_tried(total, processes, in_pairs, expected):
    assert candidates(total, processes, in_pairs) == expected
    assert all(total % (size * processes) == 0 for size in expected) or total % processes


def peers_with(other_fits):
    """This process and another one, on which others fit."""
    asked = iter(other_fits)
    return SimpleNamespace(gather=lambda value: [value, next(asked)])


def test_the_largest_that_fits_on_all_processes():
    tried = []

    def fits(size):
        tried.append(size)
        return size <= 64

    assert largest([128, 64, 32], fits, peers_with([True, True])) == 64
    assert tried == [128, 64]
    assert largest([128, 64, 32], fits, peers_with([True, False, True])) == 32
    with pytest.raises(ShortageError, match="not even 32 images at a time"):
        largest([64, 32], fits, peers_with([False, False]))


def test_main_memory_is_extrapolated_from_the_two_smallest():
    measured = []

    def memory_of(size):
        measured.append(size)
        return 1000 + 10 * size

    fits = extrapolated(SimpleNamespace(memory_of=memory_of), [64, 32, 16, 8], room=1320)
    assert [fits(size) for size in (64, 33, 32, 8)] == [False, False, True, True] and measured == [8, 8, 16]


class OfGpu:
    """A GPU with 1000 bytes, of which a step's images take 10 each."""

    def __init__(self, monkeypatch):
        self.most = 0
        for name, function in {
            "mem_get_info": lambda device: (900, 1000), "memory_reserved": lambda device: 100,
            "max_memory_reserved": lambda device: self.most,
        }.items():  # fmt: skip
            monkeypatch.setattr(torch.cuda, name, function)
        monkeypatch.setattr(batch_size, "_free", lambda device: None)

    def step(self, size):
        if size > 100:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.most = 10 * size


def test_a_gpu_s_steps_fit_if_they_can_be_done_with_some_room(monkeypatch):
    gpu, session = OfGpu(monkeypatch), SimpleNamespace(device=torch.device("cuda"))
    assert [fits_gpu(session, gpu, size) for size in (128, 96, 88)] == [False, False, True]
    monkeypatch.setattr(gpu, "step", lambda size: (_ for _ in ()).throw(RuntimeError("another error")))
    with pytest.raises(RuntimeError, match="another error"):
        fits_gpu(session, gpu, 8)


def test_the_memory_of_real_steps_is_what_decides(config, monkeypatch):
    """On this machine: more images take more, and where there is enough for the most, these are taken."""
    monkeypatch.setattr(batch_size.gc, "collect", lambda: 0)  # it takes long after many tests
    with open_session(load_config(config, command="train"), [], None, True) as session:
        rehearsal = Rehearsal(session, 8)
        before = torch.get_rng_state()
        rehearsal.step(8)
        few, many = rehearsal.memory_of(8), rehearsal.memory_of(128)
        assert torch.equal(torch.get_rng_state(), before)
        images = 120 * 3 * 32**2 * 4  # bytes, as float32
        assert many - few > 5 * images
        monkeypatch.setattr(batch_size, "available_memory", lambda: 2**40)
        assert batch_size_of_run(session, None)[0] == 16


@pytest.mark.parametrize("opts, expected", [
    ([], 3 * 224 * 224), (["TRAIN.IMG_SIZES", "[[0, 160], [9, [256, 320]]]"], 3 * 256 * 320), (["AUG.SPLITS", 3], 9 * 224 * 224),
    (["DATA.IN_CHANS", 2, "DATA.IMG_SIZE", "[64, 96]"], 8 * 64 * 96),
])  # fmt: skip
def test_images_that_wait_are_of_the_largest_size_with_all_views(opts, expected):
    assert bytes_of_image(load_config(ROOT / "configs/fat_b0.yaml", list(map(str, opts)))) == expected


def test_a_resumed_run_keeps_what_was_chosen(config, tmp_path, monkeypatch, capsys):
    """With room for less at its start than later, it ends with the bits of a run that was not interrupted."""
    saving = ["--opts", "TRAIN.SAVE_EVERY_STEPS", 1]
    monkeypatch.setattr(batch_size, "fits_here", lambda session, sizes: lambda size: size <= 8)
    run("--cfg", config, "--tag", "whole")
    end = stop_at_update(monkeypatch, 2)
    with pytest.raises(Stop):
        run("--cfg", config, "--tag", "auto", *saving)
    assert "DATA.BATCH_SIZE auto: 8 (16 do not fit into memory)" in capsys.readouterr().out
    end()
    monkeypatch.setattr(batch_size, "fits_here", lambda session, sizes: lambda size: True)
    run("--cfg", config, "--tag", "auto", *saving)
    said = capsys.readouterr().out
    assert "DATA.BATCH_SIZE auto: 8, as in the checkpoint" in said and "1 x 8 x 2 accumulated = 16" in said
    folder = tmp_path / "output/fat_tiny"
    checkpoints = [load(folder / tag / "last.pth") for tag in ("whole", "auto")]
    assert [checkpoint["plan"]["batch_size"] for checkpoint in checkpoints] == [8, 8]
    assert_same(*({key: value for key, value in c.items() if key != "config"} for c in checkpoints))


def test_elsewhere_auto_is_the_default(config):
    assert (
        batch_size_of(load_config(config)) == 128 and batch_size_of(load_config(config, ["DATA.BATCH_SIZE", "4"])) == 4
    )
    with pytest.raises(ConfigError, match="DATA.BATCH_SIZE is 'some'; it must be auto, or greater than 0"):
        load_config(config, ["DATA.BATCH_SIZE", "some"])
