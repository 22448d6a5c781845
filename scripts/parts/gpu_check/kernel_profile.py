"""Stage: which kernels a batch's time goes to: the 25 that take longest, of inference and of a training step."""

from typing import Iterator

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from utils.device import choose_arithmetic

from ..benchmark.candidates import call, step
from .setting import Check, Setting, at_least

NUMBER = 25
RUNS = 3


def checks(setting: Setting) -> Iterator[Check]:
    choose_arithmetic(setting.device, exact=False, deterministic=False, fixed_sizes=True)
    images = setting.images(2 if setting.dry_run else 128).to(setting.device)
    for task in ("inference", "train"):
        model = setting.new_model().to(setting.device, memory_format=torch.channels_last)
        make = call if task == "inference" else step
        rows = kernels_of(setting, make(model.train(task == "train"), images, torch.bfloat16, "NHWC"))
        total = sum(row["us"] for row in rows)
        for row in rows:
            row["share"] = round(row["us"] / total, 4)
        top = f"{rows[0]['name'][:60]} {rows[0]['share']:.0%}" if rows else "none"
        yield at_least(
            f"{task} kernels", len(rows), 10, top=rows[:NUMBER], us_per_batch=round(total / RUNS), longest=top
        )


def kernels_of(setting: Setting, run) -> list[dict]:
    """Name, calls and microseconds of all runs, the longest first."""
    for _ in range(3):
        run()
    setting.wait()
    activities = [ProfilerActivity.CPU] + ([] if setting.dry_run else [ProfilerActivity.CUDA])
    with profile(activities=activities) as profiler:
        for _ in range(RUNS):
            run()
        setting.wait()
    averages = profiler.key_averages()
    if setting.dry_run:
        events = [(event.key, event.count, event.self_cpu_time_total) for event in averages]
    else:  # an operator of the CPU has its kernels' time, too
        kernels = [event for event in averages if event.device_type == DeviceType.CUDA]
        events = [(event.key, event.count, event.self_device_time_total) for event in kernels]
    events.sort(key=lambda event: -event[2])
    return [{"name": name, "calls": calls, "us": round(us, 1)} for name, calls, us in events if us > 0]
