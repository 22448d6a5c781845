"""Where a figure comes from: code, machine and versions."""

import datetime
import platform
import subprocess
from pathlib import Path

import timm
import torch

ROOT = Path(__file__).resolve().parent.parent


def commit() -> str:
    """The commit of this code, with `-dirty` if files other than those of results/ differ from it: these are what is made.

    'unknown' outside of a git checkout.
    """
    try:
        number = _git("rev-parse", "--short=10", "HEAD")
        return number + "-dirty" * bool(
            _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)results")
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()


def machine(device: torch.device) -> str:
    """The processor that figures depend on."""
    if device.type == "cuda":
        return (
            f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
        )
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
