"""Says what a checkpoint is, of this project or another code; of a plain state dict, which FAT its shapes are those of."""

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any, Mapping

import torch

from engine.checkpoints.parts import folder_of
from engine.evaluation.sets.tables import is_imagenet
from utils.errors import printable
from utils.files import sha256_of
from utils.image_size import size_text
from utils.urls import shown

from .weight_files import (
    ORIGIN,
    Checkpoint,
    file_of,
    guess_fat,
    megabytes,
    num_classes_in,
    open_checkpoint,
    parameters_in,
    shape_of_fat,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument(
        "--json", action="store_true", help="print JSON, with all class names and where the weights come from"
    )


def run(args: argparse.Namespace) -> int:
    facts = describe(open_checkpoint(args.checkpoint))
    if args.json:
        print(json.dumps(facts, indent=2, default=str))  # an origin is the file's word
    else:
        lines = as_lines(facts)
        width = max(len(name) for name, _ in lines)
        print("\n".join(f"{name:<{width}}  {printable(text)}" for name, text in lines))
    return 0


def describe(checkpoint: Checkpoint) -> dict[str, Any]:
    """What is known of a checkpoint, as plain values; keys of what is not known are left out."""
    path, cfg, progress = checkpoint.path, checkpoint.cfg, checkpoint.progress
    state = checkpoint.states[checkpoint.better]
    facts: dict[str, Any] = {
        "file": str(path),
        "bytes": file_of(path).stat().st_size,
        "sha256": sha256_of(file_of(path)),
        "kind": kind_of(checkpoint),
        "tensors": len(state),
        "parameters": parameters_in(state),
        "types": {
            str(dtype).removeprefix("torch."): n
            for dtype, n in Counter(value.dtype for value in state.values()).most_common()
        },
        "weights": list(checkpoint.states),
        "better": checkpoint.better,
        "how": {name: note for name in checkpoint.states if (note := checkpoint.note(name))},
        "parts": {name: size for name, value in checkpoint.content.items() if (size := bytes_in(value))},
    }
    if cfg is not None:
        facts["model"] = cfg.MODEL.NAME
        facts["type"] = cfg.MODEL.TYPE
        facts["img_size"] = cfg.TEST.IMG_SIZE or cfg.DATA.IMG_SIZE
        facts["data"] = {"dataset": cfg.DATA.DATASET, "path": shown(cfg.DATA.DATA_PATH)}
        facts["recipe"] = {
            "epochs": cfg.TRAIN.EPOCHS,
            "optimizer": cfg.TRAIN.OPTIMIZER.NAME,
            "base_lr": cfg.TRAIN.BASE_LR,
            "weight_decay": cfg.TRAIN.WEIGHT_DECAY,
            "ema_decay": cfg.EMA.DECAY if cfg.EMA.ENABLED else None,
            "started_from": cfg.MODEL.PRETRAINED,
            "seed": cfg.SEED,
        }
    elif name := guess_fat(state):
        facts["shapes_of"] = name
    elif form := shape_of_fat(state):
        facts["shapes_of"] = f"a FAT of {form}, not registered"
    if checkpoint.classes is not None:
        facts["classes"] = checkpoint.classes
    elif num_classes_in(state):
        facts["num_classes"] = num_classes_in(state)
    if progress:
        facts["progress"] = {"epochs": progress.epoch, "step": progress.step, "updates": progress.updates}
        if progress.best:
            facts["best"] = dict(progress.best)
    if folder := folder_of(checkpoint.content):
        facts["optimizer_folder"] = folder
        facts["optimizer_is_there"] = (path.parent / folder).is_dir()
    if isinstance(origin := checkpoint.content.get(ORIGIN), dict):
        facts[ORIGIN] = origin
    return facts


def kind_of(checkpoint: Checkpoint) -> str:
    """Which code wrote the file, by what is in it."""
    content = checkpoint.content
    origin = content.get(ORIGIN)
    if isinstance(origin, dict) and isinstance(origin.get("made"), str):
        return f"made by scripts/checkpoint.py {origin['made']}"
    if checkpoint.progress and checkpoint.cfg is not None:
        return "saved by main.py"
    if "state_dict" in content and "arch" in content:
        return "saved by timm's or torchvision's training script, as its keys say"
    if "model" in content and {"config", "max_accuracy"} & set(content):
        return "saved by Swin's or the released FAT code, as its keys say"
    if all(isinstance(value, torch.Tensor) for value in content.values()):
        return "a plain state dict"
    return f"weights in a dictionary with {', '.join(map(str, list(content)[:6]))}"


def bytes_in(value: Any) -> int:
    """What the tensors in it take."""
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, Mapping):
        return sum(map(bytes_in, value.values()))
    return sum(map(bytes_in, value)) if isinstance(value, (list, tuple)) else 0


def as_lines(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Names and texts to print."""
    types = ", ".join(f"{n} {dtype}" for dtype, n in facts["types"].items())
    lines = [
        (
            "file",
            f"{facts['file']}, {megabytes(facts['bytes'])}"
            + (f", sha256 {facts['sha256'][:8]}..." if "sha256" in facts else ""),
        ),
        ("kind", facts["kind"]),
    ]
    if "model" in facts:
        lines.append(
            (
                "model",
                f"{facts['model']}, {facts['parameters'] / 1e6:.2f} M parameters, images of {size_text(facts['img_size'])} px",
            )
        )
    else:
        shapes = f", the shapes of {facts['shapes_of']}" if "shapes_of" in facts else ", no FAT by its tensors"
        lines.append(
            (
                "model",
                f"{facts['parameters'] / 1e6:.2f} M parameters{shapes}; no config of this project, which convert adds",
            )
        )
    lines.append(("tensors", f"{facts['tensors']}: {types}"))
    if "classes" in facts:
        names = facts["classes"]
        known = "ImageNet-1k's" if is_imagenet(names) else ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
        lines.append(("classes", f"{len(names)}: {known}"))
    elif "num_classes" in facts:
        lines.append(("classes", f"{facts['num_classes']}, without names"))
    if "data" in facts:
        recipe = facts["recipe"]
        lines.append(("data", f"{facts['data']['dataset']} {facts['data']['path']}".rstrip()))
        start = f", started from {recipe['started_from']}" if recipe["started_from"] else ""
        ema = f"EMA {recipe['ema_decay']:g}" if recipe["ema_decay"] is not None else "no EMA"
        lines.append((
            "recipe",
            f"{recipe['epochs']} epochs, {recipe['optimizer']}, base LR {recipe['base_lr']:g}, weight decay {recipe['weight_decay']:g}, "
            f"{ema}, seed {recipe['seed']}{start}",
        ))  # fmt: skip
    if "progress" in facts:
        place = facts["progress"]
        within = f" and {place['step']} updates" if place["step"] else ""
        lines.append(("trained", f"{place['epochs']} epochs{within}, {place['updates']} updates in all"))
    if "best" in facts:
        best = facts["best"]
        metrics = ", ".join(f"{key} {value:.3f}" for key, value in best.items() if key not in ("weights", "epoch"))
        lines.append(("best", f"{metrics} after epoch {best['epoch'] + 1} ({best['weights']} weights)"))
    which = f"; of these {facts['better']} is used by default" if len(facts["weights"]) > 1 else ""
    lines.append(("weights", " and ".join(facts["weights"]) + which))
    lines += [("how", f"{name}: {note}") for name, note in facts["how"].items()]
    parts = facts["parts"].items() if len(facts["parts"]) < 12 else []  # a plain state dict's are its tensors
    if parts:
        lines.append(("sizes", ", ".join(f"{name} {megabytes(size)}" for name, size in parts if size > 5000)))
    return lines + lines_of_parts(facts) + lines_of_origin(facts.get(ORIGIN))


def lines_of_parts(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Where the optimizer's state lies that is not in the file; nothing where it is, or there is none."""
    if "optimizer_folder" not in facts:
        return []
    missing = "" if facts["optimizer_is_there"] else ", which is missing"
    return [("optimizer", f"its state lies in {facts['optimizer_folder']}{missing}")]


def lines_of_origin(origin: Any) -> list[tuple[str, str]]:
    """Of what a file was made here; nothing for one whose entries are not those that are written here."""
    if not isinstance(origin, dict) or not isinstance(origin.get("of"), list):
        return []
    lines = [("how", f"{origin['how']}; BatchNorm's statistics: {origin.get('batch_norm')}")] if "how" in origin else []
    for entry in (entry for entry in origin["of"] if isinstance(entry, dict)):
        share = f"{entry['share']:.4f} of " if isinstance(entry.get("share"), float) else ""
        place = f", after {entry['epochs']} epochs" if "epochs" in entry else ""
        best, epochs = entry.get("best"), entry.get("epochs")
        if (
            isinstance(best, dict)
            and isinstance(epochs, int)
            and (best.get("weights"), best.get("epoch")) == (entry.get("weights"), epochs - 1)
        ):
            place += "".join(f", {key} {value:.3f}" for key, value in best.items() if isinstance(value, float))
        lines.append(
            (
                "of",
                f"{share}{entry.get('file')} ({entry.get('weights')} weights{place}), sha256 {str(entry.get('sha256'))[:8]}...",
            )
        )
    return lines
