"""Checkpoints whose optimizer's state lies in parts beside them: whole at any moment, harmless to read, nothing left over."""

import contextlib
import os
import pickle
import resource
import shutil
import signal
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from conftest import load, rest
from engine.checkpoints import parts, store
from engine.checkpoints.file import open_checkpoint
from engine.checkpoints.parts import METADATA, Parts, folder_of, folders_in, read_with_parts
from engine.checkpoints.resume import find_checkpoint
from engine.checkpoints.run_folder import claim
from engine.checkpoints.store import BEST, LAST, PREVIOUS, Checkpointer
from engine.training.optim import ResumableOptimizer
from parts.checkpoint import info
from utils.errors import CheckpointError, OutputError
from utils.files import sha256_of
from utils.processes.launch import Launch
from utils.processes.peers import Peers

PART = "__0_0.distcp"


class SavedRun:
    """A layer that learns, saved by the one process there is as by several; save number n is after n updates."""

    def __init__(self, directory):
        self.directory = directory
        self.model = torch.nn.Linear(100, 100)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.1)
        optimizer = ResumableOptimizer(self.optimizer)
        self.checkpointer = Checkpointer(
            directory, {"classes": []}, Parts(directory, Peers(Launch())), model=self.model, optimizer=optimizer
        )

    def save(self, *names):
        self.model(torch.ones(1, 100)).sum().backward()
        self.optimizer.step()
        self.checkpointer.save(*names)
        self.checkpointer.background.wait()


@pytest.fixture
def saved_run(tmp_path):
    return SavedRun(tmp_path)


@pytest.fixture
def saved(saved_run):
    """The folder of a run that has been saved twice."""
    for _ in range(2):
        saved_run.save(LAST)
    return saved_run.directory


def updates_in(path):
    return int(read_with_parts(path)["optimizer"]["state"][0]["step"])


def named_in(directory):
    return {folder_of(load(path)) for path in directory.glob("*.pth")}


def part_of(path, name=PART):
    return path.parent / folder_of(load(path)) / name


def test_a_folder_lasts_as_long_as_a_checkpoint_names_it(saved_run):
    saved_run.save(BEST, "epoch_1.pth", LAST)
    directory, first = saved_run.directory, folder_of(load(saved_run.directory / LAST))
    for _ in range(3):
        saved_run.save(LAST)
        assert {path.name for path in folders_in(directory)} == named_in(directory)
    assert len(folders_in(directory)) == 3
    assert [updates_in(directory / name) for name in (LAST, PREVIOUS, BEST, "epoch_1.pth")] == [4, 3, 1, 1]
    saved_run.save(BEST, LAST)
    (directory / "epoch_1.pth").unlink()
    assert (directory / first).exists()
    saved_run.save(LAST)
    assert not (directory / first).exists()


def test_weights_are_in_the_file_alone_and_the_parts_are_torch_s_format(saved, tmp_path):
    checkpoint, whole = load(saved / LAST), tmp_path / "whole.pt"
    assert not any(isinstance(value, torch.Tensor) for value in checkpoint["optimizer"].values())
    dcp_to_torch_save(part_of(saved / LAST).parent, whole)
    state = read_with_parts(saved / LAST)["optimizer"]["state"]
    assert state[0]["exp_avg"].shape == (100, 100) and state[0]["exp_avg"].any()
    for number, entry in load(whole)["state"].items():
        assert all(torch.equal(value, state[int(number)][name]) for name, value in entry.items())
    shutil.rmtree(part_of(saved / LAST).parent)
    assert torch.equal(open_checkpoint(saved / LAST).states["raw"]["weight"], checkpoint["model"]["weight"])


@contextlib.contextmanager
def dies_at(place, name, number=1):
    """The process is killed when this function is called for this time."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        original, calls = getattr(place, name), iter(range(1, 100))

        def dying(*args, **options):
            if next(calls) == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **options)

        monkeypatch.setattr(place, name, dying)
        yield


@pytest.mark.parametrize("moment, expected", [
    ((parts._Writer, "write_data"), (LAST, 2)),
    rest((parts, "sha256_of"), (LAST, 2)),
    rest((parts._Writer, "finish"), (LAST, 2)),
    ((store, "atomic_write"), (LAST, 2)),
    ((os, "replace", 2), (PREVIOUS, 2)),
    ((shutil, "rmtree"), (LAST, 3)),
], ids=["part", "checksum", "metadata", "file", "names", "removal"])  # fmt: skip
def test_killed_at_each_moment_of_a_save(saved, saved_run, moment, expected):
    pid = os.fork()
    if not pid:
        with contextlib.suppress(BaseException), dies_at(*moment):
            saved_run.save(LAST)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    start = find_checkpoint(saved, True, "")
    assert (start.path.name, updates_in(start.path)) == expected and not start.damaged
    claim(saved, start, auto_resume=True)
    assert {path.name for path in folders_in(saved)} == named_in(saved)


def test_a_part_that_does_not_fit_on_the_disk_leaves_the_checkpoints_as_they_were(saved, saved_run):
    """In the middle of a tensor, where torch.save says something else."""
    limit, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (60000, limit[1]))
        with pytest.raises(OutputError, match=rf"{PART}: cannot be written \(File too large\); free space or"):
            saved_run.save(LAST)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert updates_in(saved / LAST) == 2 and len(folders_in(saved)) == 2


def cut(part):
    part.write_bytes(part.read_bytes()[:-100])


def flip(part):
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)


@pytest.mark.parametrize("name", [PART, METADATA])
@pytest.mark.parametrize("harm, words", [
    (Path.unlink, "a part of its optimizer's state, is missing; copy it again"),
    (flip, "is damaged, its checksum is wrong; copy it again"),
    rest(cut, "is damaged, its checksum is wrong; copy it again"),
], ids=["missing", "flipped", "cut"])  # fmt: skip
def test_the_previous_checkpoint_takes_over_from_one_with_a_damaged_part(saved, saved_run, name, harm, words):
    part = part_of(saved / LAST, name)
    harm(part)
    with pytest.raises(CheckpointError, match=f"^{saved / LAST}: {part}.*{words}.*--pretrained$"):
        find_checkpoint(saved, False, str(saved / LAST))
    start = find_checkpoint(saved, True, "")
    assert start.path == saved / PREVIOUS and updates_in(start.path) == 1 and list(start.damaged) == [saved / LAST]
    claim(saved, start, auto_resume=True)
    saved_run.save(LAST)
    assert part.parent.exists()  # last.pth.damaged may be mended


def test_a_checkpoint_without_its_folder_says_what_to_copy(saved, tmp_path, capsys):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copy(saved / LAST, elsewhere / "mine.pth")
    folder = part_of(saved / LAST).parent
    with pytest.raises(
        CheckpointError, match=f"mine.pth: .* the folder {folder.name} beside it, which is missing; copy"
    ):
        find_checkpoint(saved, False, str(elsewhere / "mine.pth"))
    assert ("optimizer", f"its state lies in {folder.name}, which is missing") in info.as_lines(
        info.describe(info.open_checkpoint(elsewhere / "mine.pth"))
    )
    (elsewhere / "link.pth").symlink_to(saved / LAST)
    assert updates_in(elsewhere / "link.pth") == 2
    shutil.copytree(folder, elsewhere / folder.name)
    assert updates_in(elsewhere / "mine.pth") == 2


def test_a_run_that_starts_over_puts_the_folders_away_with_their_checkpoints(saved):
    claim(saved, find_checkpoint(saved, False, ""), auto_resume=False)
    (away,) = saved.glob("replaced_*")
    assert [updates_in(away / name) for name in (LAST, PREVIOUS)] == [2, 1]
    assert not folders_in(saved) and len(folders_in(away)) == 2


class Hostile:
    def __reduce__(self):
        return os.system, ("touch was_run",)


def rewrite(path, **changes):
    """Another entry of the parts; the rest of the checkpoint as it was."""
    checkpoint = load(path)
    checkpoint["optimizer"]["parts"] |= changes
    torch.save(checkpoint, path)


def test_code_in_the_metadata_is_refused_and_not_run(saved, monkeypatch):
    monkeypatch.chdir(saved)
    part = part_of(saved / LAST, METADATA)
    part.write_bytes(pickle.dumps({"state_dict_metadata": Hostile()}))
    sums = load(saved / LAST)["optimizer"]["parts"]["sha256"]
    rewrite(saved / LAST, sha256={**sums, METADATA: sha256_of(part)})
    with pytest.raises(
        CheckpointError, match=r"cannot be used \(refused, it names (posix|os).system, which could run code\)"
    ):
        read_with_parts(saved / LAST)
    assert not (saved / "was_run").exists()


@pytest.mark.parametrize("changes", [
    {"folder": "../elsewhere"}, {"folder": 3}, {"sha256": {"../last.pth": "0"}}, {"sha256": []},
], ids=str)  # fmt: skip
def test_names_that_lead_out_of_the_folder_are_refused(saved, changes):
    rewrite(saved / LAST, **changes)
    with pytest.raises(CheckpointError, match="does not say where its optimizer's state lies"):
        read_with_parts(saved / LAST)
