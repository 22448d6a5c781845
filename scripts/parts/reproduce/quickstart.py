"""The quickstart's checkpoint, for figures that need weights where none are given."""

import os
import subprocess
import sys
from pathlib import Path

from engine.checkpoints.file import progress_of, read_checkpoint
from engine.checkpoints.store import BEST, LAST
from engine.session import run_directory
from utils.config import load_config
from utils.errors import CheckpointError, ProcessError

from .results import ROOT

CONFIG = ROOT / "configs" / "fat_quickstart.yaml"


def checkpoint() -> Path:
    """The best checkpoint of the finished quickstart run, which is trained (about a minute on two cores) if it is not there.

    Raises:
        ProcessError: it could not be made; what failed has said why.
    """
    cfg = load_config(CONFIG)
    run = ROOT / run_directory(cfg)
    if not _is_finished(run, cfg.TRAIN.EPOCHS):
        print(f"{_shown(run)}: is not there or not finished; training it", flush=True)
        make_images(cfg.DATA.DATA_PATH)
        _run(
            "-m", "torch.distributed.launch", "--nproc_per_node", "2", "main.py", "--cfg", str(CONFIG.relative_to(ROOT))
        )
    return _shown(run / BEST)


def image() -> Path:
    """The first validation image, once there is a `checkpoint`.

    Raises:
        ProcessError: the images could not be made.
    """
    return min((Path(make_images(load_config(CONFIG).DATA.DATA_PATH)) / "val").rglob("*.png"))


def make_images(path: str) -> str:
    """Makes the images of scripts/make_quickstart_data.py in datasets/digits or datasets/emoji, if they are not there.

    Returns:
        Where these lie, seen from the working directory; another path as it is.

    Raises:
        ProcessError: they could not be made.
    """
    if path not in ("datasets/digits", "datasets/emoji"):
        return path
    if not (ROOT / path).is_dir():
        _run("scripts/make_quickstart_data.py", Path(path).name, path)
    return str(_shown(ROOT / path))


def _is_finished(run: Path, epochs: int) -> bool:
    if not (run / BEST).is_file() or not (run / LAST).is_file():
        return False
    try:
        return progress_of(read_checkpoint(run / LAST), run / LAST).epoch >= epochs
    except CheckpointError:
        return False  # main.py knows what to do with it


def _shown(path: Path) -> Path:
    """The path as a figure names it: from the working directory, if it lies below that."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _run(*words: str) -> None:
    done = subprocess.run([sys.executable, *words], cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode:
        raise ProcessError(
            f"{' '.join(words)}: ended with status {done.returncode}; see above, or give --checkpoint and --image"
        )
