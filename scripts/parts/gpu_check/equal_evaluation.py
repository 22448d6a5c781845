"""Stage: `--eval` in float32 counts the same images as right on the CPU and on the GPU."""

import json
from typing import Iterator

from utils.run_files import EVAL

from .main_runs import MainRun, command, run_folder
from .setting import Check, Setting, equal


def checks(setting: Setting) -> Iterator[Check]:
    MainRun(setting, command(setting, "trained", "cpu", "AMP.ENABLED", "False"), setting.folder / "trained.log").wait()
    weights = run_folder(setting, "trained") / "last.pth"
    devices = {"cpu": "cpu", "device": setting.device.type}
    runs = {}
    for tag, device in devices.items():
        more = ["DATA.SYNTHETIC_IMAGES", "256", "--eval", "--disable_amp", "--resume", str(weights)]
        runs[tag] = MainRun(setting, command(setting, tag, device, *more), setting.folder / f"{tag}.log")
    for run in runs.values():
        run.wait()
    here, there = (json.loads((run_folder(setting, tag) / EVAL).read_text()) for tag in devices)
    for name in ("raw", "ema"):
        for figure in ("num_images", "acc1", "acc5"):
            yield equal(f"{name} {figure}", there[name][figure], here[name][figure])
        yield equal(f"{name} loss to 5 digits", f"{there[name]['loss']:.5g}", f"{here[name]['loss']:.5g}")
