"""The measured cells: which runs and checkpoints may fill a cell of the tables, and the files that keep the figures.

A cell is named by its config's path below configs/, without .yaml. <output>/measured/<cell>.json holds the newest
measurement that was accepted; the ones of this repository's results/measured/ stand in for what is not there.
"""

import argparse
import datetime
import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Iterable, Iterator, Mapping, Optional, Sequence

import torch

from engine.checkpoints.file import open_checkpoint, progress_of
from engine.checkpoints.load import require_fit
from engine.evaluation.sets.tables import is_imagenet
from engine.tasks import create_task
from utils.config import load_config, to_dict
from utils.errors import CheckpointError, ConfigError, DataError, UserError, did_you_mean, printable
from utils.files import write_json
from utils.provenance import record
from utils.run_files import CONFIG, EVAL, RESULT, require_object
from utils.schema import DEFAULTS, EVALUATION, IMAGES, KEYS, NUMERICS, RUN, SPEED, SPLIT, keys_of
from utils.yaml_files import read_yaml

from .results import ROOT

CONFIGS = ROOT / "configs"
MEASURED = ROOT / "results" / "measured"
AGAIN = "restore it, or measure again"
CLASSES, TRAIN_IMAGES, VAL_IMAGES = 1_000, 1_281_167, 50_000  # ImageNet-1k's

# Keys in which a run may differ from its cell's config: all others shape what is trained and how it is evaluated.
WHERE = {*keys_of(RUN, IMAGES, SPEED, EVALUATION)}  # which data: images are counted, classes compared
HOW = {*keys_of(NUMERICS)}  # also free, but said beside the figure
SPLIT_OF_BATCH = {*keys_of(SPLIT)}  # free where TRAIN.TOTAL_BATCH_SIZE says their product


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--runs",
        type=Path,
        metavar="DIR",
        help="look below this folder for finished runs (default: output, if it is there)",
    )
    parser.add_argument(
        "--data-path", metavar="DIR", help="ImageNet, to evaluate --checkpoints on its validation images"
    )
    parser.add_argument(
        "--dataset", default="imagenet", metavar="FORMAT", help="its format, DATA.DATASET (default: imagenet, folders)"
    )
    parser.add_argument(
        "--checkpoints",
        nargs="+",
        default=[],
        metavar="CELL=FILE",
        help="checkpoints to evaluate, such as fat_b0=best.pth",
    )


def measure(args: argparse.Namespace, cells: Sequence[str]) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """The cells' accepted measurements, after the runs and checkpoints of the arguments have been looked at.

    The newest one counts. What is found below the default folder and is not what a cell means is said and left; what
    --runs or --checkpoints name and cannot be used is refused.

    Returns:
        By cell, the measurement, see `measurement`; cells without one are not in it. And what was refused, a line each.
    """
    accepted, refused = kept(args.output, cells)
    fresh = []
    for folder, cell in runs_below(args.runs or Path("output"), cells):
        try:
            fresh.append(measurement_of_run(folder, cell))
        except UserError as error:
            if args.runs:
                refused.append(str(error))
            else:
                print(f"not used: {error}")
    if args.runs and not args.runs.is_dir():
        refused.append(f"--runs: {args.runs}: no such folder; give a run's, or one that holds runs")
    elif args.runs and not fresh and not refused:
        refused.append(
            f"--runs: {args.runs} holds no run whose config says REPRODUCES {', '.join(cells)}; train with configs/<cell>.yaml"
        )
    evaluated, lines = measure_checkpoints(args, cells)
    for new in sorted(fresh, key=lambda new: new["date"]) + evaluated:
        cell = new["cell"]
        if cell not in accepted or new["date"] > accepted[cell]["date"]:
            accepted[cell] = new
            write_json(args.output / "measured" / f"{cell}.json", new)
            print(f"{cell}: {new['acc1']:.2f} % top-1 measured by {new['source']}")
    return accepted, refused + lines


def kept(output: Path, cells: Iterable[str]) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """The measurements that were accepted before, by cell, and what is none of them, a line each."""
    known, refused = {}, []
    for cell in cells:
        try:
            found = read_measured(output, cell)
            if found:
                known[cell] = found
        except DataError as error:
            refused.append(str(error))
    return known, refused


def read_measured(output: Path, cell: str) -> Optional[dict[str, Any]]:
    """Raises DataError: the file is no measurement of this cell."""
    for folder in (output / "measured", MEASURED):
        path = folder / f"{cell}.json"
        if path.is_file():
            found = require_object(path, AGAIN)
            if not is_measurement(found, cell):
                raise DataError(f"{path}: is no measurement of {cell}; restore it, or remove it and measure again")
            return found
    return None


def is_measurement(found: Mapping[str, Any], cell: str) -> bool:
    """Whether it has all that `measurement` says of a cell, with values that a measurement can have."""
    other = found.get("other_settings")
    numbers: dict[str, tuple[float, float]] = {"acc1": (0, 100), "acc5": (0, 100), "loss": (0, sys.float_info.max)}
    counts: dict[str, tuple[float, float]] = {"num_images": (VAL_IMAGES, VAL_IMAGES)}
    if "last_acc1" in found:  # of a run
        numbers["last_acc1"] = (0, 100)
        counts |= dict.fromkeys(("epoch", "epochs", "seed", "unreadable", "left_out"), (0, sys.maxsize))
    return (
        found.get("cell") == cell
        and all(
            type(found.get(key)) in (int, float) and least <= found[key] <= most
            for key, (least, most) in numbers.items()
        )
        and all(type(found.get(key)) is int and least <= found[key] <= most for key, (least, most) in counts.items())
        and found["acc1"] <= found["acc5"]
        and ("last_acc1" not in found or (found["last_acc1"] <= found["acc1"] and found["epoch"] < found["epochs"]))
        and all(_is_line(found.get(key)) for key in ("source", "commit", "machine", "versions"))
        and found.get("weights") in ("raw", "ema")
        and _is_time(found.get("date"))
        and isinstance(other, dict)
        and HOW.issuperset(other)
        and all(_is_line(str(value)) for value in other.values())
    )


def _is_line(value: Any) -> bool:
    return isinstance(value, str) and bool(value) and value.isprintable()


def _is_time(value: Any) -> bool:
    """Whether it is a time of `utils.provenance.record`."""
    try:
        return datetime.datetime.fromisoformat(value).utcoffset() == datetime.timedelta(0)
    except (TypeError, ValueError):
        return False


# What a cell means


def require_recipe(config: Mapping[str, Any], cell: str, what: str) -> dict[str, Any]:
    """Holds a run's config against its cell's.

    Returns:
        What differs of `HOW`: {key: value}.

    Raises:
        DataError: something else differs.
    """
    expected = to_dict(load_config(CONFIGS / f"{cell}.yaml"))
    free = WHERE | (SPLIT_OF_BATCH if expected["TRAIN"]["TOTAL_BATCH_SIZE"] else set())
    differences, how = [], {}
    for key in KEYS:
        value, wanted = value_of(config, key), value_of(expected, key)
        if key in HOW and value != wanted:
            how[key] = value
        elif key not in free and value != wanted:
            differences.append(f"{key} is {value!r}, not {wanted!r}")
    if differences:
        more = f", and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise DataError(f"{what}: is another recipe than configs/{cell}.yaml: {', '.join(differences[:3])}{more}")
    return how


def value_of(config: Mapping[str, Any], key: str) -> Any:
    """The value of SECTION.KEY; the default if the config is older than the key."""
    node: Any = config
    default: Any = DEFAULTS
    for name in key.split("."):
        node, default = node.get(name) if isinstance(node, Mapping) else None, default[name]
    return default if node is None else node


def require_no_changes(changes: Any, cell: str, what: str) -> None:
    """Raises DataError: a run was gone on with, once, with other settings or data."""
    expected = load_config(CONFIGS / f"{cell}.yaml")
    free = WHERE | HOW | {"seed"} | (SPLIT_OF_BATCH if expected.TRAIN.TOTAL_BATCH_SIZE else set())
    if not isinstance(changes, list):
        raise DataError(f"{what}: what changed on the way is {changes!r}, no list; restore the file")
    real = [change for change in changes if str(change).partition(" changed from ")[0] not in free]
    if real:
        raise DataError(
            f"{what}: changed on the way: {', '.join(map(str, real[:3]))}; a cell takes one recipe from beginning to end"
        )


def measurement(cell: str, figures: Mapping[str, Any], source: str, **facts: Any) -> dict[str, Any]:
    """What a measured cell consists of; `figures` are of the weights that were better on the validation images."""
    found = {key: figures[key] for key in ("acc1", "acc5", "loss", "num_images", "weights")}
    return {"cell": cell, **found, "source": source, **facts}


def provenance(measured: Mapping[str, Any]) -> str:
    """Where a measured figure comes from, in one line."""
    parts = [measured["source"], f"{measured['weights']} weights"]
    if "last_acc1" in measured:
        parts.append(
            f"epoch {measured['epoch'] + 1} of {measured['epochs']} (the last one: {measured['last_acc1']:.2f} %), seed {measured['seed']}"
        )
    if "saved_after" in measured:
        parts.append(f"saved after {measured['saved_after']} of {measured['epochs']} epochs")
    parts += [f"{key} {value}" for key, value in measured.get("other_settings", {}).items()]
    for key, what in (
        ("unreadable", "training images that could not be read"),
        ("left_out", "updates that were not finite"),
    ):
        if measured.get(key):
            parts.append(f"without {measured[key]:,} {what}")
    if measured.get("recipe_known") is False:
        parts.append("which does not say how it was trained")
    return "; ".join(
        [*parts, measured["date"][:10], f"commit {measured['commit']}", measured["machine"], measured["versions"]]
    )


# Runs


def runs_below(folder: Path, cells: Sequence[str]) -> Iterator[tuple[Path, str]]:
    """The folders of runs, finished or not, that measure one of the cells, with the cell."""
    for parent, _, names in sorted(os.walk(folder)):  # which leaves out what cannot be listed
        path = Path(parent, CONFIG)
        if path.name not in names or not path.is_file():
            continue
        if path.parent.name.startswith("replaced_") and path.parent != folder:
            continue  # what main.py moved away when the run was begun anew
        try:
            text = path.read_text(errors="replace")
            # parsing takes 50 ms, and there may be many runs of other models
            config = read_yaml(path, str(path), AGAIN) if any(cell in text for cell in cells) else None
        except (OSError, ConfigError):
            continue  # nobody's config, or a damaged one: it names no cell
        cell = config.get("REPRODUCES") if isinstance(config, dict) else None
        if cell in cells:
            yield path.parent, cell


def measurement_of_run(folder: Path, cell: str) -> dict[str, Any]:
    """Raises DataError: the run is not finished, or not what the cell means."""
    config = read_yaml(folder / CONFIG, str(folder / CONFIG), AGAIN)
    how = require_recipe(config, cell, str(folder))
    path, epochs = folder / RESULT, value_of(config, "TRAIN.EPOCHS")
    if not path.is_file():
        raise DataError(f"{folder}: has no {RESULT}, as it is not finished; start its command again")
    result = require_object(path, AGAIN)
    try:
        best, last = result["best"], result["last"]
        if result["cell"] != cell or last["epoch"] + 1 != epochs:
            raise DataError(
                f"{folder}: its result is of {last['epoch'] + 1} of {epochs} epochs, for cell {result['cell']!r}; let it finish"
            )
        require_no_changes(result["changes"], cell, str(folder))
        if result["imagenet"] is not True or result["classes"] != CLASSES:
            raise DataError(
                f"{folder}: is not of ImageNet: its {result['classes']} classes are not ImageNet's {CLASSES:,}"
            )
        counts = result["train_images"], result["val_images"], best.get("num_images")
        if counts != (TRAIN_IMAGES, VAL_IMAGES, VAL_IMAGES):
            raise DataError(
                f"{folder}: is of {counts[0]} training and {counts[1]} validation images, of which {counts[2]} were counted in its best "
                f"epoch; ImageNet has {TRAIN_IMAGES:,} and {VAL_IMAGES:,}"
            )
        if result["unreadable"] > TRAIN_IMAGES // 1000:
            raise DataError(f"{folder}: {result['unreadable']:,} images could not be read; mend them and train again")
        facts = {
            key: result[key]
            for key in (
                "seed",
                "unreadable",
                "left_out",
                "precision",
                "processes",
                "date",
                "commit",
                "machine",
                "versions",
            )
        }
        facts.update(epoch=best["epoch"], epochs=epochs, last_acc1=last["acc1"], other_settings=how)
        found = measurement(cell, best, f"training run {printable(folder)}", **facts)
    except (KeyError, TypeError, AttributeError):
        found = {}
    if not is_measurement(found, cell):
        raise DataError(f"{path}: is no run's result; train again, or evaluate its best.pth with --checkpoints")
    return found


# Checkpoints


def measure_checkpoints(args: argparse.Namespace, cells: Sequence[str]) -> tuple[list[dict[str, Any]], list[str]]:
    """Evaluates --checkpoints; returns the measurements and what was refused."""
    wanted, refused = wanted_checkpoints(args.checkpoints, cells)
    if args.checkpoints and not args.data_path:
        refused.append(
            "--checkpoints: no images to evaluate on; add --data-path, the folder that holds ImageNet's val/"
        )
    elif args.data_path and not args.checkpoints:
        refused.append(f"--data-path: nothing to evaluate; add --checkpoints {cells[0]}=best.pth")
    if not wanted or not args.data_path:
        return [], refused
    good, found = {}, []
    for cell, path in wanted.items():
        try:
            good[cell] = facts_of_checkpoint(cell, path)
        except UserError as error:
            refused.append(str(error))
    try:
        require_imagenet(next(iter(wanted)), args.data_path, args.dataset)
    except UserError as error:
        return [], [*refused, str(error)]
    for cell, facts in good.items():
        try:
            found.append(measurement_of_checkpoint(cell, wanted[cell], facts, args.data_path, args.dataset))
        except UserError as error:
            refused.append(str(error))
    return found, refused


def wanted_checkpoints(texts: Sequence[str], cells: Sequence[str]) -> tuple[dict[str, Path], list[str]]:
    """The file of each cell that --checkpoints names, and what it says that is none, a line each."""
    wanted: dict[str, Path] = {}
    refused = []
    for text in texts:
        cell, _, name = text.partition("=")
        if not name:
            refused.append(f"--checkpoints: {text!r} must be CELL=FILE, such as {cells[0]}=best.pth")
        elif cell not in cells:
            refused.append(f"--checkpoints: {cell!r} is no cell of this table; {did_you_mean(cell, cells)}")
        elif cell in wanted:
            refused.append(f"--checkpoints: {cell} is given twice, {wanted[cell]} and {name}; leave one out")
        else:
            wanted[cell] = Path(name)
    return wanted, refused


def require_imagenet(cell: str, data_path: str, dataset: str) -> None:
    """Raises DataError: these are not ImageNet's validation images, by number and classes."""
    flags = {"DATA.DATA_PATH": data_path, "DATA.DATASET": dataset, "MODEL.NUM_CLASSES": 0}
    images = create_task(load_config(CONFIGS / f"{cell}.yaml", flags=flags)).val_dataset()
    if (len(images), len(images.classes)) != (VAL_IMAGES, CLASSES):
        raise DataError(
            f"--data-path: {data_path}: {len(images):,} images in {len(images.classes):,} classes; ImageNet's validation set has "
            f"{VAL_IMAGES:,} in {CLASSES:,}; give the folder that holds its val/"
        )
    if not is_imagenet(images.classes):
        raise DataError(
            f"--data-path: {data_path}: its classes, {images.classes[0]!r} and so on, are not ImageNet's (n01440764, ...)"
        )


def facts_of_checkpoint(cell: str, path: Path) -> dict[str, Any]:
    """What a checkpoint says of itself; one of another tool need not say how it was trained.

    Raises:
        CheckpointError: there is no such file, or it is of another model or other classes.
        DataError: it says that it was trained with another recipe.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint for {cell}; check the path")
    opened = open_checkpoint(path)
    model = create_task(load_config(CONFIGS / f"{cell}.yaml")).build_model(CLASSES)
    for name in opened.weights:
        require_fit(model, opened, name)
    checkpoint, classes, config, known = (
        opened.content,
        opened.classes,
        opened.config,
        {"recipe_known": False, "other_settings": {}},
    )
    if isinstance(classes, list) and not is_imagenet(classes):
        raise CheckpointError(
            f"{path}: knows other classes than ImageNet's {CLASSES:,}; use one that was trained on it"
        )
    if isinstance(config, dict):
        progress, plan = checkpoint.get("progress"), checkpoint.get("plan")
        known = {"recipe_known": True, "other_settings": require_recipe(config, cell, str(path))}
        require_no_changes(progress.get("changes", []) if isinstance(progress, dict) else [], cell, str(path))
        images = plan.get("num_images") if isinstance(plan, dict) else None
        if images != TRAIN_IMAGES:
            raise DataError(f"{path}: was trained on {images} images; ImageNet has {TRAIN_IMAGES:,}")
        known |= {"saved_after": progress_of(checkpoint, path).epoch, "epochs": value_of(config, "TRAIN.EPOCHS")}
    return {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), **known}


def measurement_of_checkpoint(
    cell: str, path: Path, facts: Mapping[str, Any], data_path: str, dataset: str
) -> dict[str, Any]:
    """Evaluates with main.py, in a folder that is removed again.

    Raises:
        DataError: the evaluation failed, or left images out.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, ROOT / "main.py", "--cfg", CONFIGS / f"{cell}.yaml", "--eval", "--resume", path]
        command += ["--data-path", data_path, "--output", folder, "--opts", "DATA.DATASET", dataset]
        done = subprocess.run([str(word) for word in command], stderr=subprocess.PIPE, text=True)
        if done.returncode:
            said = [line for line in done.stderr.splitlines() if line.strip()] or [
                f"ended with status {done.returncode}"
            ]
            raise DataError(f"{path}: its evaluation failed: {said[-1].removeprefix('error: ')}")
        [written] = Path(folder).rglob(EVAL)
        result = require_object(written, AGAIN)
    if result["num_images"] != VAL_IMAGES:
        raise DataError(
            f"{path}: its evaluation counted {result['num_images']:,} of {VAL_IMAGES:,} images; see the warnings above"
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    source = f"evaluation of a checkpoint, {printable(path.name)}, sha256 {facts['sha256'][:12]}"
    found = measurement(cell, result, source, precision=result["precision"], **facts, **record(device))
    if not is_measurement(found, cell):
        raise DataError(
            f"{path}: its evaluation gave a loss of {result['loss']}; its weights may not be finite, use another one"
        )
    return found
