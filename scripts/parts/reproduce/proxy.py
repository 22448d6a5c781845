"""The ablations' accuracy by a short schedule on a small set: all variants with the same seeds, and a paired test."""

import argparse
from pathlib import Path
from typing import Any, Mapping, Sequence

import matplotlib.pyplot as plt
import yaml
from yacs.config import CfgNode

from engine.checkpoints.resume import config_changes
from utils.config import load_config, to_dict
from utils.errors import ConfigError, OutputError
from utils.markdown import markdown_table
from utils.run_files import CONFIG, RESULT, median_speed, read_figures, require_object
from utils.yaml_files import read_yaml

from .cells import AGAIN
from .plots import save_png
from .quickstart import make_images
from .results import TRAINED, facts_of, write_results
from .statistics import Comparison, compare
from .training import Job, train_all


def reproduce(args: argparse.Namespace, variants: Mapping[str, Mapping[str, Any]], base: str) -> None:
    """Trains every variant with every seed and writes results/ablations_<name of the recipe>.md, .csv and .png.

    Args:
        args: `proxy` (the recipe), `seeds`, `jobs`, `proxy_runs`, `output`, `command`.
        variants: {name: {config key: value}} of what each changes in the recipe.
        base: the one that the others are compared with.

    Raises:
        UserError: arguments, images or a run that cannot be used; the runs that are finished are kept.
    """
    if args.seeds < 1 or args.jobs < 1:
        raise ConfigError(f"--seeds {args.seeds}, --jobs {args.jobs}: must be 1 or more")
    if not args.proxy.is_file():
        raise ConfigError(f"--proxy {args.proxy}: no such file; give a config such as configs/proxy/short.yaml")
    recipe = load_config(args.proxy)
    images = make_images(recipe.DATA.DATA_PATH)
    runs = {
        (name, seed): run_of(args.proxy, args.proxy_runs / args.proxy.stem, images, name, seed, changes)
        for seed in range(args.seeds)
        for name, changes in variants.items()
    }
    for _, cfg, directory in runs.values():
        require_same_recipe(cfg, directory)
    names = {f"{name}, seed {seed}": (name, seed) for name, seed in runs}
    jobs = [
        Job(label, tuple(argv), directory / "output.txt") for label, (argv, _, directory) in zip(names, runs.values())
    ]

    def done(job: Job, seconds: float) -> None:
        figures = figures_of(runs[names[job.name]][2])
        print(
            f"{job.name}: top-1 {figures['acc1']:.2f} % after {figures['epochs']} epochs ({seconds:.0f} s)", flush=True
        )

    train_all(jobs, args.jobs, done)
    rows = [
        {"variant": name, "seed": seed, **figures_of(directory)} for (name, seed), (_, _, directory) in runs.items()
    ]
    figures = {name: [row["acc1"] for row in rows if row["variant"] == name] for name in variants}
    write(args, recipe, rows, figures, compare(figures, base), base)


def run_of(
    recipe: Path, root: Path, images: str, name: str, seed: int, changes: Mapping[str, Any]
) -> tuple[list[str], CfgNode, Path]:
    """main.py's arguments for a run on the images of a folder, the config that they give, and the run's folder."""
    opts = [
        word
        for key, value in changes.items()
        for word in (key, yaml.safe_dump(value, default_flow_style=True).split("\n")[0])
    ]
    opts += ["SEED", str(seed)]
    flags = {"OUTPUT": str(root), "TAG": f"{name}_seed{seed}", "DATA.DATA_PATH": images}
    cfg = load_config(recipe, opts, flags)
    argv = [
        "--cfg",
        str(recipe),
        "--output",
        flags["OUTPUT"],
        "--tag",
        flags["TAG"],
        "--data-path",
        images,
        "--opts",
        *opts,
    ]
    return argv, cfg, root / cfg.MODEL.NAME / flags["TAG"]


def require_same_recipe(cfg: CfgNode, directory: Path) -> None:
    """Raises OutputError if the folder's run was trained with other settings."""
    path = directory / CONFIG
    if not path.is_file():
        return
    try:
        given = read_yaml(path, str(path), "")
    except ConfigError as error:
        raise OutputError(str(path), "cannot be read", "remove the folder or give another --proxy-runs") from error
    changes = config_changes(given, to_dict(cfg))
    if changes:
        raise OutputError(
            f"{directory}: was trained with other settings ({changes[0]}); remove it or give another --proxy-runs"
        )


def figures_of(directory: Path) -> dict[str, Any]:
    """Of a finished run: its last epoch's metrics, which no choice among epochs has made better.

    Raises:
        DataError: its record or result is not there or incomplete.
    """
    records, result = read_figures(directory, ("acc1", "loss")), require_object(directory / RESULT, AGAIN)
    last, start = records["epoch"][-1], records["start"][-1]
    return {
        "acc1": last["raw"]["acc1"], "loss": last["raw"]["loss"], "train_loss": last["train_loss"], "epochs": last["epoch"] + 1,
        "train_images": start["train_images"], "val_images": last["raw"]["num_images"], "params": start["params"],
        "images_per_second": round(median_speed(records), 1), **{key: str(result.get(key, "unknown")) for key in TRAINED},
    }  # fmt: skip


def write(
    args: argparse.Namespace,
    recipe: CfgNode,
    rows: Sequence[dict[str, Any]],
    figures: Mapping[str, Sequence[float]],
    compared: Mapping[str, Comparison],
    base: str,
) -> None:
    table = [
        [
            "variant",
            "top-1, %: mean",
            "standard deviation",
            "difference from base",
            "95 % interval",
            "p, paired t-test",
            "p, Holm",
        ]
    ]
    for name, found in sorted(compared.items(), key=lambda item: -item[1].mean):
        table.append([
            f"**{name}**" if name == base else name, f"{found.mean:.2f}", _number(found.deviation), _number(found.difference, "+.2f"),
            f"{found.interval[0]:+.2f} to {found.interval[1]:+.2f}" if found.interval else "", _number(found.p_value, ".3f"),
            _number(found.adjusted, ".3f"),
        ])  # fmt: skip
    different = [name for name, found in compared.items() if found.adjusted is not None and found.adjusted < 0.05]
    said = ", ".join(different) or "none"
    untested = ", ".join(name for name, found in compared.items() if name != base and found.p_value is None)
    said += (
        f" (not tested, as one seed or the same difference with each says nothing of chance: {untested})"
        if untested
        else ""
    )
    first = rows[0]
    body = f"""**A proxy that says little about ImageNet.** {recipe.MODEL.NAME} ({first["params"] / 1e6:.2f} M parameters) with the same parts changed as in
configs/ablations/, trained by [{args.proxy.name}](../configs/proxy/{args.proxy.name}): {first["epochs"]} epochs of {first["train_images"]:,} images at
{recipe.DATA.IMG_SIZE} px, {first["val_images"]} validation images, where one image is {100 / first["val_images"]:.2f} points. Small images have few keys and values, a short
schedule favours what learns fast, and a model of this size is none of the paper's. It shows that the variants train, and differences
that are large; the paper's are not, and are to be measured with configs/ablations/ on ImageNet.

Top-1 of the last epoch, raw weights, {args.seeds} seed(s) each. A seed fixes the order of images, their augmentation and drop path; the test pairs the
runs of a seed, and cannot tell what other validation images would say. Different from the base at Holm's 5 %: {said}.

{markdown_table(table)}
"""
    output = args.output / f"ablations_{args.proxy.stem}"
    write_results(output, f"Ablations: {args.proxy.stem} proxy", args.command, facts_of(rows), body, rows)
    draw(
        output.with_suffix(".png"),
        figures,
        base,
        f"{recipe.MODEL.NAME}, {first['epochs']} epochs of {first['train_images']} images, {args.seeds} seed(s)",
    )


def _number(value, style: str = ".2f") -> str:
    return "" if value is None else format(value, style)


def draw(path: Path, figures: Mapping[str, Sequence[float]], base: str, title: str) -> None:
    """Each run as a dot, each variant's mean as a line; the runs of a seed have one colour."""
    names = sorted(figures, key=lambda name: -sum(figures[name]))
    figure, axes = plt.subplots(figsize=(9, 0.4 * len(names) + 1.4), layout="constrained")
    for index, name in enumerate(names):
        values = figures[name]
        axes.scatter(values, [index] * len(values), c=range(len(values)), cmap="tab10", vmin=0, vmax=9, s=18, zorder=3)
        mean = sum(values) / len(values)
        axes.plot([mean, mean], [index - 0.35, index + 0.35], color="black")
    axes.axvline(sum(figures[base]) / len(figures[base]), color="gray", linewidth=0.8, linestyle="--")
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    axes.set(xlabel="top-1 of the last epoch, %", title=f"Proxy: {title}")
    axes.title.set_fontsize(9)
    save_png(figure, path)
