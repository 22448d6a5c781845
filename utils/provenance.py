"""Where a figure comes from: code, machine and versions."""

import datetime
import platform
import subprocess
from pathlib import Path

import timm
import torch

ROOT = Path(__file__).resolve().parent.parent


def commit() -> str:
    """The commit of this code, with `-dirty` if files differ from it; 'unknown' outside of a git checkout."""
    try:
        done = subprocess.run(["git", "describe", "--always", "--dirty", "--abbrev=10"], cwd=ROOT, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return done.stdout.strip() or "unknown"


def machine(device: torch.device) -> str:
    """The processor that figures depend on."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
    cpu = platform.machine()
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), cpu)
    return f"{cpu}, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} thread(s)"


def versions() -> str:
    return f"Python {platform.python_version()}, torch {torch.__version__}, timm {timm.__version__}"


def record(device: torch.device) -> dict[str, str]:
    """What figures that are written now depend on, for a JSON file; the time is UTC."""
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    return {"date": now, "commit": commit(), "machine": machine(device), "versions": versions()}


def environment(device: torch.device) -> list[str]:
    """What figures measured now depend on, a line each."""
    return [f"{datetime.date.today()}, commit {commit()}", machine(device), versions()]
