"""Entry points of torch.hub: `torch.hub.load(PATH, "fat_b0", source="local", checkpoint="best.pth")`.

A program may have packages `models`, `engine`, `data` and `utils` of its own, and other hub repositories theirs: while
this one's are imported, those are set aside, and are back afterwards. What stays of it is the package of the models,
under the name `fat_hub_models` (`import fat_hub_models` then finds it), and the models' names in timm's registry. A
program that has imported this repository's `models` already gets the models of that.
"""

import contextlib
import importlib.util
import pathlib
import sys
import typing

import timm

dependencies = ["torch", "timm"]  # of a checkpoint all of requirements.txt

_ROOT = pathlib.Path(__file__).resolve().parent
_PARTS = ("engine", "data", "utils", "models")
_MODELS = "fat_hub_models"


def fat_tiny(
    pretrained: bool = False, checkpoint: typing.Optional[str] = None, weights: typing.Optional[str] = None,
    **kwargs: typing.Any,
):  # fmt: skip
    """FAT-Tiny, 0.4 M parameters; see `fat_b0`."""
    return _create("fat_tiny", pretrained, checkpoint, weights, kwargs)


def fat_small(
    pretrained: bool = False, checkpoint: typing.Optional[str] = None, weights: typing.Optional[str] = None,
    **kwargs: typing.Any,
):  # fmt: skip
    """FAT-Small, 1.9 M parameters; see `fat_b0`."""
    return _create("fat_small", pretrained, checkpoint, weights, kwargs)


def fat_b0(
    pretrained: bool = False, checkpoint: typing.Optional[str] = None, weights: typing.Optional[str] = None,
    **kwargs: typing.Any,
):  # fmt: skip
    """FAT-B0, 4.5 M parameters.

    Args:
        pretrained: False; no weights are published with this code.
        checkpoint: file of main.py, whose config is used; a folder of scripts/export.py hub; a file of the authors'
            released code; or a state dict. Of the last two the number of classes is that of the head. Which weights
            were taken, and what was done for it, is said in one line on standard error.
        weights: 'raw' or 'ema', of a checkpoint that has both; None for the average (ema) of a run's if that was what
            was best, and of another tool's, else the raw ones.
        kwargs: of `models.FAT`; with another `num_classes` than the checkpoint's the head starts anew.

    Returns:
        The model in training mode, as timm creates them: (B, 3, H, W) normalised images -> (B, num_classes).

    Raises:
        ValueError: `pretrained`, a checkpoint that cannot be used, a package that reading one needs, or arguments that
            the model refuses.
    """
    return _create("fat_b0", pretrained, checkpoint, weights, kwargs)


def fat_b1(
    pretrained: bool = False, checkpoint: typing.Optional[str] = None, weights: typing.Optional[str] = None,
    **kwargs: typing.Any,
):  # fmt: skip
    """FAT-B1, 7.8 M parameters; see `fat_b0`."""
    return _create("fat_b1", pretrained, checkpoint, weights, kwargs)


def fat_b2(
    pretrained: bool = False, checkpoint: typing.Optional[str] = None, weights: typing.Optional[str] = None,
    **kwargs: typing.Any,
):  # fmt: skip
    """FAT-B2, 13.5 M parameters; see `fat_b0`."""
    return _create("fat_b2", pretrained, checkpoint, weights, kwargs)


def fat_b3(
    pretrained: bool = False, checkpoint: typing.Optional[str] = None, weights: typing.Optional[str] = None,
    **kwargs: typing.Any,
):  # fmt: skip
    """FAT-B3, 29 M parameters; see `fat_b0`."""
    return _create("fat_b3", pretrained, checkpoint, weights, kwargs)


def _create(name: str, pretrained: bool, checkpoint, weights: typing.Optional[str], kwargs: dict):
    if pretrained:
        raise ValueError(
            f"pretrained: no weights of {name} are published with this code; "
            "give checkpoint=FILE, of main.py or the released code"
        )
    if weights and checkpoint is None:
        raise ValueError("weights: is a choice among those of a checkpoint; give checkpoint=FILE, or leave it out")
    models = _import_models()
    try:
        if checkpoint is None:
            return timm.create_model(name, **kwargs)
        with _importing(models):
            return _from_checkpoint(name, pathlib.Path(checkpoint), weights, kwargs)
    except ImportError as error:
        missing = error.name or "a package"
        install = f"pip install -r {_ROOT / 'requirements.txt'}"
        raise ValueError(f"checkpoint: {missing} cannot be imported ({error}); {install}") from error
    except (TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(f"{name}: the arguments are refused ({' '.join(str(error).split())})") from error


def _import_models() -> str:
    """The name under which this repository's models are imported.

    It is not `models`, which others have too: pickle, and tools that read sources, find a class again by the name of its
    module.
    """
    for name in ("models", _MODELS):
        if _is_of_this_repository(sys.modules.get(name)):
            return name
    spec = importlib.util.spec_from_file_location(_MODELS, _ROOT / "models" / "__init__.py")
    package = importlib.util.module_from_spec(spec)
    _take_out(_MODELS)  # of another copy of the repository
    sys.modules[_MODELS] = package
    try:
        spec.loader.exec_module(package)
    except BaseException:
        _take_out(_MODELS)
        raise
    return _MODELS


def _is_of_this_repository(module) -> bool:
    place = getattr(module, "__file__", None)
    return place is not None and pathlib.Path(place).resolve() == _ROOT / "models" / "__init__.py"


@contextlib.contextmanager
def _importing(models: str):
    """Within it `engine`, `data` and `utils` come from this repository, and `models` is the package of that name."""
    ours = {f"models{name[len(models) :]}": module for name, module in _modules_of(models).items()}
    theirs = _take_out(*_PARTS)
    sys.modules.update(ours)
    sys.path.insert(0, str(_ROOT))
    try:
        yield
    finally:
        sys.path.remove(str(_ROOT))
        _take_out(*_PARTS)
        sys.modules.update(theirs)


def _modules_of(*packages: str) -> dict:
    return {name: module for name, module in list(sys.modules.items()) if name.split(".")[0] in packages}


def _take_out(*packages: str) -> dict:
    """Takes the packages and all in them out of what is imported; returns them."""
    found = _modules_of(*packages)
    for name in found:
        del sys.modules[name]
    return found


def _from_checkpoint(name: str, path: pathlib.Path, weights: typing.Optional[str], kwargs: dict):
    from engine.checkpoints.file import open_checkpoint
    from engine.checkpoints.load import load_pretrained, load_weights, require_fit
    from utils.errors import UserError, printable

    try:
        opened = open_checkpoint(path)
        kind = opened.choose(weights, "weights")
        model = timm.create_model(name, **{**_settings(name, opened, kind), **kwargs})
        if "num_classes" in kwargs:
            skipped, how = load_pretrained(model, opened, kind)
        else:
            fitted = require_fit(model, opened, kind)
            load_weights(model, fitted.state, path)
            skipped, how = [], fitted.note
        model.pretrained_cfg.update(_told(opened), num_classes=model.num_classes)
    except UserError as error:
        raise ValueError(str(error)) from error
    anew = f"; of another size and initialised anew: {', '.join(skipped)}" if skipped else ""
    print(printable(f"{path}: {kind} weights{how and ': '}{how}{anew}"), file=sys.stderr)
    return model


def _told(checkpoint) -> dict:
    """What timm is to know of images (`timm.data.resolve_model_data_config`) and classes, as far as the file says it."""
    from engine.setup.preprocessing import data_config
    from utils.config import config_from

    told = {}
    if checkpoint.config:
        told.update(data_config(config_from(checkpoint.config, f"{checkpoint.path}: its config")))
    if checkpoint.classes:
        told["label_names"] = checkpoint.classes
    return told


def _settings(name: str, checkpoint, kind: str) -> dict:
    """Arguments of the model that the weights are of."""
    from utils.config import config_from, to_dict

    path, weights = checkpoint.path, checkpoint.states[kind]
    settings = {"num_classes": len(weights["head.weight"])} if "head.weight" in weights else {}
    if not checkpoint.config:
        return {**settings, "distilled": "head_dist.weight" in weights}
    cfg = config_from(checkpoint.config, f"{path}: its config")
    if cfg.MODEL.TYPE != "fat" or cfg.MODEL.NAME.lower() != name:
        advice = "use the entry point of that name, or scripts/export.py hub"
        raise ValueError(f"{path}: is of {cfg.MODEL.NAME}, not {name}; {advice}")
    settings.update({key: value for key, value in to_dict(cfg.MODEL.FAT).items() if value not in ([], "")})
    return settings
