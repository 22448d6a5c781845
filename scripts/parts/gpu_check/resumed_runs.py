"""Stage: main.py with DETERMINISTIC, killed and started again, ends with the bits of a run that nothing disturbed."""

from typing import Iterator

from .main_runs import MainRun, command, count_differences, run_folder, state_of
from .setting import Check, Setting, equal

PRECISIONS = {
    "float32": ("AMP.ENABLED", "False"),
    "bfloat16": ("AMP.DTYPE", "bfloat16"),
    "float16": ("AMP.DTYPE", "float16"),
}


def checks(setting: Setting) -> Iterator[Check]:
    names = list(PRECISIONS)[: 2 if setting.dry_run else 3]  # a CPU computes in float16 slowly
    whole = {name: start(setting, name, "whole") for name in names}
    killed = {name: start(setting, name, "killed") for name in names}
    kills = {name: run.kill_when(lambda name=name: updates(setting, name) >= 3) for name, run in killed.items()}
    resumed = {name: start(setting, name, "killed") for name in names}
    for name in names:
        yield equal(f"{name} killed while it ran", kills[name], True)
        whole[name].wait()
        resumed[name].wait()
        states = [state_of(run_folder(setting, f"{name}_{tag}")) for tag in ("whole", "killed")]
        yield equal(f"{name} epochs", states[1]["progress"]["epoch"], 3)
        yield equal(f"{name} differences", count_differences(*states), 0)


def start(setting: Setting, precision: str, tag: str) -> MainRun:
    options = ["DETERMINISTIC", "True", "TRAIN.SAVE_EVERY_STEPS", "1", *PRECISIONS[precision]]
    name = f"{precision}_{tag}"
    device = setting.device.type
    return MainRun(setting, command(setting, name, device, *options), setting.folder / f"{name}.log")


def updates(setting: Setting, precision: str) -> int:
    """What the killed run's log says of updates that it has done."""
    log = run_folder(setting, f"{precision}_killed") / "log.txt"
    return log.read_text().count(" loss ") if log.is_file() else 0
