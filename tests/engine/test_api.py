"""Training, evaluating and predicting from Python, in a process that goes on afterwards."""

import json
import multiprocessing
import random
import signal
import threading

import pytest
import torch

from conftest import config_writer, run
from engine import api
from engine.observer import Observer
from utils.errors import CheckpointError, ConfigError, UserError
from utils.leftovers import without_leftovers
from utils.lock import RunLock
from utils.malloc import keep_freed_memory
from utils.memory import resident_memory
from utils.signals import STOP_SIGNALS, StopRequest, stop_signals

ONE_EPOCH = {"TRAIN.EPOCHS": 1, "TRAIN.WARMUP_EPOCHS": 0, "EMA.ENABLED": False}


def state_of_process():
    """What a caller would notice: handlers, random numbers, torch's choices."""
    handlers = [signal.getsignal(number) for number in STOP_SIGNALS]
    algorithms = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    return handlers, random.getstate(), torch.get_rng_state().tolist(), algorithms


def new_children(before):
    """Processes besides those that other tests have left."""
    return [process for process in multiprocessing.active_children() if process not in before]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, digits):
    """Two trainings, one after the other in one process, and what the process was like before and afterwards."""
    folder = tmp_path_factory.mktemp("api")
    cfg = config_writer(folder, digits)()
    before, children = state_of_process(), multiprocessing.active_children()
    opts = {**ONE_EPOCH, "DETERMINISTIC": True, "DATA.NUM_WORKERS": 1}
    results = [api.train(cfg, {**opts, "TAG": tag}) for tag in ("first", "second")]
    return cfg, folder / "output/fat_tiny", results, (before, state_of_process(), new_children(children))


def test_two_trainings_give_what_their_files_say_and_the_same_figures(trained):
    _, folder, (first, second), _ = trained
    assert first == json.loads((folder / "first/result.json").read_text())
    assert first["best"] == second["best"] and first["epochs"] == 1 and 0 <= first["best"]["acc1"] <= 100


def test_nothing_is_left_in_the_process(trained):
    _, folder, _, (before, after, children) = trained
    assert before == after
    assert not children and not torch.distributed.is_initialized()


def test_a_finished_run_gives_its_result_again(trained):
    cfg, folder, (first, _), _ = trained
    stamp = (folder / "first/last.pth").stat().st_mtime_ns
    assert api.train(cfg, {**ONE_EPOCH, "TAG": "first"}) == first
    assert (folder / "first/last.pth").stat().st_mtime_ns == stamp


def test_an_evaluation_gives_what_the_command_writes(trained):
    cfg, folder, (first, _), _ = trained
    checkpoint = folder / "first/best.pth"
    figures = api.evaluate(checkpoint)
    assert figures["acc1"] == first["best"]["acc1"] and figures["num_images"] == 29
    run("--cfg", cfg, "--eval", "--resume", checkpoint, "--tag", "by_command")
    written = json.loads((folder / "by_command/eval.json").read_text())
    assert figures == written
    assert figures == json.loads((folder / "first/eval.json").read_text())


def test_a_set_s_summary_is_given(trained, tmp_path):
    _, folder, _, _ = trained
    sets = tmp_path / "sets.yaml"
    sets.write_text("seen: {path: train}\n")
    opts = {"TEST.SETS": ["seen"], "TEST.SETS_FILE": str(sets), "TAG": "sets"}
    assert api.evaluate(folder / "first/best.pth", opts=opts)["sets"]["seen"]["num_images"] == 60


def test_a_loaded_model_predicts(trained, digits):
    _, folder, _, _ = trained
    paths = sorted(map(str, (digits / "val/1").iterdir()))[:3]
    predictor = api.load(folder / "first/best.pth", device="cpu")
    predictions = list(predictor(paths))
    assert [prediction.path for prediction in predictions] == paths
    assert predictor.trained.names == ["0", "1", "2"] and len(predictions[0].probabilities) == 3


@pytest.mark.parametrize("opts, part", [
    ({"TRAIN.EPOCH": 1}, "opts: unknown key TRAIN.EPOCH"),
    ({"TRAIN.EPOCHS": "many"}, "opts: TRAIN.EPOCHS is 'many'"),
    ({"TRAIN.WARMUP_EPOCHS": 9}, "TRAIN.WARMUP_EPOCHS is 9"),
])  # fmt: skip
def test_what_cannot_be_is_an_error_of_one_line(trained, opts, part):
    with pytest.raises(ConfigError) as caught:
        api.train(trained[0], opts)
    assert part in str(caught.value) and "\n" not in str(caught.value)


def test_a_checkpoint_without_a_config_is_refused_in_an_evaluation(tmp_path):
    torch.save({"head.weight": torch.zeros(3, 8)}, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match="has no config"):
        api.evaluate(tmp_path / "weights.pth")


class Breaks(Observer):
    """An error in the middle of an epoch, when the loading process works."""

    def after_update(self, trainer, step):
        self.loader = trainer.data.train_loader.loader
        raise UserError("something", "breaks", "mend it")


def test_an_error_leaves_nothing_either(trained):
    cfg, folder, _, _ = trained
    before, children, breaks = state_of_process(), multiprocessing.active_children(), Breaks()
    with pytest.raises(UserError, match="breaks") as kept:  # as a notebook keeps the last one
        api.train(cfg, {**ONE_EPOCH, "TAG": "broken", "DATA.NUM_WORKERS": 1}, [breaks])
    del breaks.loader
    assert state_of_process() == before and not new_children(children)
    pid = RunLockOfAnother(folder / "broken").taken_by()
    assert pid == 0 and kept.value.reason == "breaks"


def test_memory_that_a_run_has_freed_goes_back_to_the_system():
    """Which glibc keeps as long as a run goes on."""
    if not keep_freed_memory():
        pytest.skip("memory is not glibc's, or somebody has set how it keeps it")
    before, size = resident_memory(), 2**28
    with without_leftovers():
        torch.ones(size // 4)
        assert resident_memory() - before > size / 2
    assert resident_memory() - before < size / 2


class RunLockOfAnother:
    """A run's folder as another process finds it: the system's record locks are no bar to the one that holds them."""

    def __init__(self, folder):
        self.folder = folder

    def taken_by(self) -> int:
        """0 if it is free."""
        process = multiprocessing.get_context("fork").Process(target=RunLock(self.folder).acquire)
        process.start()
        process.join()
        return process.exitcode


def test_in_another_thread_signals_do_as_before():
    seen = []

    def work():
        with stop_signals(StopRequest()):
            seen.append([signal.getsignal(number) for number in STOP_SIGNALS])

    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]
