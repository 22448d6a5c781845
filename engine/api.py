"""What the commands do, from Python and in this process:

    from engine import api

    result = api.train("configs/fat_b0.yaml", {"DATA.DATA_PATH": "/path/to/imagenet", "TRAIN.EPOCHS": 1})
    figures = api.evaluate("output/fat_b0/default/best.pth")
    predictor = api.load("output/fat_b0/default/best.pth")

Each goes the way of its command, and leaves nothing behind in the process but the run's files. An error is a `UserError`
(utils.errors) with the line that the command would end with.
"""

import os
from pathlib import Path
from typing import Any, Mapping, Optional, Sequence, Union

from yacs.config import CfgNode

from utils.config import config_from, load_config, with_values
from utils.device import select_device
from utils.errors import CheckpointError, ConfigError
from utils.leftovers import without_leftovers

from .checkpoints.file import open_checkpoint
from .commands import run_command
from .inference.label_predictor import LabelPredictor
from .inference.predictor import Predictor
from .inference.trained import load_trained
from .observer import Observer

AnyPath = Union[str, os.PathLike]
PREDICTORS = {"classification": Predictor, "multilabel": LabelPredictor}
WHERE = "opts"  # what a message calls the values that a caller gives


def train(cfg: AnyPath, opts: Optional[Mapping[str, Any]] = None, observers: Sequence[Observer] = ()) -> dict[str, Any]:
    """Trains as `main.py --cfg CFG --opts ...` does; goes on where the run was ended, and leaves a finished one alone.

    Args:
        cfg: a YAML file, such as configs/fat_b0.yaml.
        opts: config keys with other values, {"TRAIN.EPOCHS": 1}.
        observers: who is told of the run's events.

    Returns:
        What the run's result.json says; {} on the other processes of a launcher.

    Raises:
        UserError: what the command would end with.
        Stopped: Ctrl-C or another signal has ended the run, which is saved; the same call goes on.
    """
    opts = opts or {}
    return _run("train", load_config(cfg, flags=opts, command="train", flags_from=WHERE), opts, observers)


def evaluate(
    checkpoint: AnyPath,
    cfg: Optional[AnyPath] = None,
    opts: Optional[Mapping[str, Any]] = None,
) -> dict[str, Any]:
    """Evaluates as `main.py --eval --resume CHECKPOINT` does.

    Args:
        checkpoint: such as a run's best.pth.
        cfg: a YAML file; None: the checkpoint's own config, whose OUTPUT and TAG say where eval.json is written.
        opts: config keys with other values, {"DATA.DATA_PATH": "/other/images"}.

    Returns:
        What eval.json says, and with TEST.SETS a summary of each set as `sets`; {} on the other processes of a launcher.

    Raises:
        UserError: what the command would end with.
        Stopped: Ctrl-C or another signal has ended it.
    """
    opts = {**(opts or {}), "MODEL.RESUME": str(checkpoint)}
    if cfg is not None:
        config = load_config(cfg, flags=opts, command="eval", flags_from=WHERE)
    else:
        values = open_checkpoint(Path(checkpoint)).config
        if not values:
            raise CheckpointError(
                str(checkpoint), "has no config", "give the one that its model was trained with as cfg"
            )
        config = with_values(config_from(values, f"{checkpoint}: its config"), opts, WHERE, "eval")
    return _run("eval", config, opts)


def load(
    checkpoint: AnyPath,
    cfg: Optional[AnyPath] = None,
    classes: str = "",
    weights: Optional[str] = None,
    device: str = "auto",
    batch_size: int = 64,
) -> Predictor:
    """A trained model that says what image files show, as scripts/predict.py does.

        predictor = api.load("best.pth")
        for prediction in predictor(["a.jpg", "b.png"]):
            print(prediction.path, predictor.trained.names[prediction.labels[0]], prediction.probabilities[0])

    Args:
        checkpoint, cfg, classes, weights: see `engine.inference.trained.load_trained`.
        device: 'auto' (a GPU if there is one), 'cpu' or 'cuda'.
        batch_size: images at a time.

    Raises:
        CheckpointError: the checkpoint cannot be used.
        ConfigError: the config, the classes or the device cannot; or the model gives no classes of images.
    """
    trained = load_trained(Path(checkpoint), Path(cfg) if cfg else None, classes, weights)
    if trained.cfg.TASK not in PREDICTORS:
        raise ConfigError(
            str(checkpoint),
            f"is of a model for {trained.cfg.TASK}",
            "take engine.inference.trained.load_trained, whose model gives its outputs",
        )
    return PREDICTORS[trained.cfg.TASK](trained, select_device(device, 0), batch_size=batch_size)


def _run(name: str, cfg: CfgNode, opts: Mapping[str, Any], observers: Sequence[Observer] = ()) -> dict[str, Any]:
    """What a command returns on the process that writes."""
    with without_leftovers():
        return run_command(name, cfg, list(opts), observers=observers) or {}
