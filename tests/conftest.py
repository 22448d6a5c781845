"""What several tests need: small configs, real digits as folders, runs in this process or in several."""

import os
import sys
import traceback
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "scripts"))

import main as cli  # noqa: E402
import models  # noqa: E402, F401  (registers FAT with timm)
from utils.errors import UserError  # noqa: E402

torch.set_num_threads(1)  # forked processes must not inherit a thread pool

SMALL = {
    "DEVICE": "cpu",
    "PRINT_FREQ": 1,
    "DATA": {"DATASET": "folder", "IMG_SIZE": 32, "BATCH_SIZE": 8, "NUM_WORKERS": 0},
    "MODEL": {"NAME": "fat_tiny", "DROP_PATH_RATE": 0.1},
    "TRAIN": {"EPOCHS": 2, "WARMUP_EPOCHS": 1, "BASE_LR": 0.02},
    "EMA": {"ENABLED": True, "DECAY": 0.9},
    "AUG": {"HFLIP": 0.0, "SCALE": [0.5, 1.0]},
}


@pytest.fixture(scope="session")
def digits(tmp_path_factory) -> Path:
    """60 training and 29 validation images of three digits, as folders; 29 is divisible by no 2, 3 or 8."""
    from make_quickstart_data import digits as all_digits

    root = tmp_path_factory.mktemp("digits")
    wanted = {("train", "0"): 20, ("train", "1"): 20, ("train", "2"): 20, ("val", "0"): 10, ("val", "1"): 10, ("val", "2"): 9}
    for split, label, name, image in all_digits():
        if wanted.get((split, label), 0):
            wanted[split, label] -= 1
            folder = root / split / label
            folder.mkdir(parents=True, exist_ok=True)
            image.save(folder / name)
    return root


@pytest.fixture
def write_config(tmp_path, digits):
    """Writes a YAML file of `SMALL` with the given values over it; returns its path."""

    def write(name: str = "small.yaml", **sections) -> Path:
        config = {key: dict(value) if isinstance(value, dict) else value for key, value in SMALL.items()}
        config["DATA"]["DATA_PATH"] = str(digits)
        config["OUTPUT"] = str(tmp_path / "output")
        for section, values in sections.items():
            if isinstance(values, dict):
                config.setdefault(section, {}).update(values)
            else:
                config[section] = values
        path = tmp_path / name
        path.write_text(yaml.safe_dump(config))
        return path

    return write


def run(*argv) -> None:
    """main.py in this process."""
    cli.main([str(arg) for arg in argv])


def error_of(*argv) -> UserError:
    """The error with which main.py ends; its message is one line."""
    with pytest.raises(UserError) as caught:
        run(*argv)
    message = str(caught.value)
    assert message and "\n" not in message
    return caught.value


def _process(rank: int, world_size: int, port: int, function, args) -> None:
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    try:
        function(*args)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def run_processes(world_size: int, function, *args) -> None:
    """function(*args) in `world_size` forked processes with a launcher's environment; all must end well."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.start_processes(
        _process, (world_size, port, function, args), nprocs=world_size, join=True, start_method="fork"
    )


def launch(world_size: int, *argv) -> None:
    """main.py as a launcher starts it, with `world_size` processes."""
    run_processes(world_size, run, *argv)
