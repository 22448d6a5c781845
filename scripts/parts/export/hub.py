"""A folder as the Hugging Face hub has models: timm loads it by `local-dir:` now, and by `hf-hub:` once it is uploaded."""

from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from timm.data import resolve_model_data_config
from timm.models import save_for_hf
from yacs.config import CfgNode

from data.remote.origin import REMOTE
from engine.checkpoints.file import TRAINING_CONFIG, progress_of, read_checkpoint
from engine.evaluation.sets.tables import meanings
from engine.setup.preprocessing import data_config
from engine.tasks.imbalance import BALANCED, EFFECTIVE
from utils.config import config_from, to_dict, value_of
from utils.conflicts import is_rgb
from utils.errors import CheckpointError, OutputError
from utils.image_size import height_and_width, size_text
from utils.markdown import markdown_table
from utils.provenance import commit
from utils.run_files import EVAL, RESULT, read_object
from utils.schema import KEYS, PATH, VALIDATION
from utils.urls import shown

from .export_job import ExportError, Job, first_line, needed, preprocessing

PAPER = (
    "[Lightweight Vision Transformer with Bidirectional Interaction](https://arxiv.org/abs/2306.00396) (NeurIPS 2023)"
)
RECIPE = (  # of the card
    ("epochs", "TRAIN.EPOCHS"), ("optimizer", "TRAIN.OPTIMIZER.NAME"), ("LR per 512 images", "TRAIN.BASE_LR"), ("schedule", "TRAIN.LR_SCHEDULER.NAME"),
    ("weight decay", "TRAIN.WEIGHT_DECAY"), ("images per update", "TRAIN.TOTAL_BATCH_SIZE"), ("drop path", "MODEL.DROP_PATH_RATE"),
    ("label smoothing", "MODEL.LABEL_SMOOTHING"), ("augmentation policy", "AUG.AUTO_AUGMENT"), ("mixup", "AUG.MIXUP"), ("cutmix", "AUG.CUTMIX"),
    ("random erasing", "AUG.REPROB"), ("EMA decay", "EMA.DECAY"),
)  # fmt: skip


SPLITS = ("DATA.TRAIN_SPLIT", "DATA.VAL_SPLIT")


def export(job: Job) -> None:
    """Writes model.safetensors, config.json and README.md into <output>/<model>_hub; other files there stay.

    Raises:
        ConfigError: safetensors is missing.
        ExportError: timm makes another model of the folder.
    """
    needed("safetensors")
    target = job.output / f"{job.name}_hub"
    with job.staged(target) as folder:
        write(job, folder)
        (folder / "model.safetensors").chmod((folder / "config.json").stat().st_mode)  # safetensors shuts others out
        verify(job, folder)
        card(job).save(folder / "README.md")


def write(job: Job, folder: Path) -> None:
    """Weights and timm's config.json."""
    from safetensors import SafetensorError

    trained = job.trained
    described = {name: meaning for name, meaning in zip(trained.classes, meanings(trained.classes)) if meaning}
    try:
        save_for_hf(
            trained.model,
            str(folder),
            model_config={
                "pretrained_cfg": {"tag": job.cfg.TAG}, "label_names": trained.classes,
                **({"label_descriptions": described} if described else {}), TRAINING_CONFIG: shared(job.cfg),
            },
            safe_serialization=True,
            data_config=data_config(job.cfg),
        )  # fmt: skip
    except SafetensorError as error:
        raise OutputError(
            f"{job.output}: cannot be written ({first_line(error)}); free space or change --output"
        ) from error
    except (ValueError, TypeError, AttributeError, AssertionError, KeyError) as error:
        raise ExportError(f"--checkpoint: timm cannot save {job.cfg.MODEL.NAME} ({first_line(error)})") from error


def shared(cfg: CfgNode) -> dict[str, Any]:
    """The config without this machine's paths, and without URLs and commands of shards, which may hold a key to them."""
    config = to_dict(cfg)
    for key, entry in KEYS.items():
        value = value_of(config, key)
        of_the_machine = entry.rule is PATH and value not in (BALANCED, EFFECTIVE)
        if of_the_machine or (key in SPLITS and REMOTE.match(value)):
            *sections, last = key.split(".")
            section = value_of(config, sections[0]) if sections else config
            del section[last]
    return to_dict(config_from(config, "config"))


@torch.inference_mode()
def verify(job: Job, folder: Path) -> None:
    """Raises ExportError unless timm makes of the folder a model with the same weights, logits and transform."""
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    own, found = job.trained.model.state_dict(), model.state_dict()
    same = own.keys() == found.keys() and all(torch.equal(own[key], found[key]) for key in own)
    images = torch.rand(
        2, job.cfg.DATA.IN_CHANS, *height_and_width(job.size), generator=torch.Generator().manual_seed(0)
    )
    if not same or not torch.equal(model(images), job.trained.model(images)):
        raise ExportError(
            f"--checkpoint: timm makes another model of the folder than {job.cfg.MODEL.NAME} is; nothing is written"
        )
    # JSON has no tuples
    found = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in resolve_model_data_config(model).items()
    }
    different = {key: found.get(key) for key, value in data_config(job.cfg).items() if found.get(key) != value}
    if different:
        raise ExportError(f"--checkpoint: timm would prepare images in another way ({different}); nothing is written")
    print("  timm.create_model('local-dir:...') has the same weights, logits to the last bit, and transform")


# The model card


def card(job: Job) -> ModelCard:
    """README.md, with the front matter that the hub reads."""
    trained, cfg = job.trained, job.cfg
    metrics, source = metrics_of(trained.path, trained.weights, cfg)
    dataset = dataset_name(job)
    results = [
        EvalResult(
            task_type="image-classification", dataset_type="imagenet-1k" if trained.is_of_imagenet else "imagefolder", dataset_name=dataset,
            dataset_split=split_name(cfg), metric_type="accuracy", metric_name=name, metric_value=round(metrics[key], 3),
        )
        for name, key in (("top-1", "acc1"), ("top-5", "acc5"))
        if key in metrics
    ]  # fmt: skip
    data = ModelCardData(
        library_name="timm", pipeline_tag="image-classification", tags=["image-classification", "timm", "fat"] if job.fused else ["image-classification", "timm"],
        datasets=["imagenet-1k"] if trained.is_of_imagenet else None, model_name=cfg.MODEL.NAME, eval_results=results or None,
    )  # fmt: skip
    lines = ["---", data.to_yaml(), "---", f"# {cfg.MODEL.NAME}, {dataset}", ""]
    if job.fused:
        lines += [f"FAT, an image classifier after {PAPER}."]
    parameters = sum(parameter.numel() for parameter in trained.model.parameters())
    lines += [
        f"{parameters / 1e6:.2f} M parameters, {' x '.join(map(str, height_and_width(job.size)))} px, {len(trained.classes)} classes. License: not stated.",
        "",
    ]
    lines += ["## Metrics", "", *metric_lines(metrics, source, dataset, cfg), ""]
    lines += ["## Use", "", *use_lines(job), ""]
    lines += ["## Training", "", *training_lines(job), ""]
    return ModelCard("\n".join(lines))


def dataset_name(job: Job) -> str:
    if job.trained.is_of_imagenet:
        return "ImageNet-1k"
    data = job.trained.cfg.DATA
    path = "" if data.DATA_PATH.startswith("pipe:") else shown(data.DATA_PATH)
    return Path(path).name or data.DATASET


def split_name(cfg: CfgNode) -> str:
    return VALIDATION if REMOTE.match(cfg.DATA.VAL_SPLIT) else cfg.DATA.VAL_SPLIT


def metrics_of(path: Path, weights: str, cfg: CfgNode) -> tuple[dict[str, Any], str]:
    """The validation metrics of a checkpoint's weights, and where they are from; ({}, '') if they were not measured.

    From the evaluation after its last epoch, which the run's best.pth has with it; else from eval.json beside it, which is of
    whatever was evaluated last under the run's name: only if that was this file, as it is now, with its config's views.
    """
    try:
        progress = progress_of(read_checkpoint(path), path)
        best = {**progress.best_metrics, **progress.best}
        if best.get("epoch") == progress.epoch - 1 and best.get("weights") == weights:
            return best, f"the run's evaluation after epoch {progress.epoch}"
    except CheckpointError:  # of weights alone
        pass
    evaluation = path.with_name(EVAL)
    evaluated = {"crop_mode": "center", **read_object(evaluation)}  # an older file does not say it
    own = {
        "img_size": cfg.TEST.IMG_SIZE or cfg.DATA.IMG_SIZE, "crop_pct": cfg.TEST.CROP_PCT, "crop_mode": cfg.TEST.CROP_MODE, "crops": cfg.TEST.CROPS, "flip": cfg.TEST.FLIP,
        "dataset": cfg.DATA.DATASET, "data_path": shown(cfg.DATA.DATA_PATH),
    }  # fmt: skip
    same = Path(str(evaluated.get("checkpoint", ""))).resolve() == path.resolve() and own.items() <= evaluated.items()
    if same and isinstance(evaluated.get(weights), dict) and evaluation.stat().st_mtime >= path.stat().st_mtime:
        return evaluated[weights], EVAL
    return {}, ""


def metric_lines(metrics: dict[str, Any], source: str, dataset: str, cfg: CfgNode) -> list[str]:
    if "acc1" not in metrics:
        return ["Not measured."]
    shown = [
        (name, metrics.get(key))
        for name, key in (("top-1, %", "acc1"), ("top-5, %", "acc5"), ("loss", "loss"), ("images", "num_images"))
    ]
    row = [
        f"{value:.2f}" if isinstance(value, float) else str(value) if value is not None else "not measured"
        for _, value in shown
    ]
    partial = " Not of the whole set." if metrics.get("unreadable") else ""
    views = [f"{cfg.TEST.CROPS} crops"] * (cfg.TEST.CROPS > 1) + ["mirror images"] * cfg.TEST.FLIP
    partial += f" The mean over {' and '.join(views)}; one view gives other figures." if views else ""
    return [
        markdown_table([[name for name, _ in shown], row]), "",
        f"On {dataset}, split {split_name(cfg)}; from {source}.{partial}",
    ]  # fmt: skip


def use_lines(job: Job) -> list[str]:
    prepared, rgb = preprocessing(job.trained), is_rgb(job.cfg)
    first = "import models  # of the FAT repository, from its root: registers FAT with timm\n" if job.fused else ""
    return [
        "```python",
        "import timm",
        "import torch",
        *(["from PIL import Image, ImageOps"] if rgb else []),
        f"{first}",
        'model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()  # or "hf-hub:USER/NAME"',
        *(reading_lines(prepared["exif_upright"]) if rgb else band_lines(job)),
        "with torch.inference_mode():",
        "    shares = model(images).softmax(1)[0]",
        'print(model.pretrained_cfg["label_names"][shares.argmax()], shares.max())',
        "```",
        "",
        f"Images are resized {resized_to(prepared)} ({prepared['interpolation']}), cropped to {size_text(job.size)} px at the centre, "
        f"{prepared['scale']}, and normalised by mean {prepared['mean']} and standard deviation {prepared['std']}.",
    ]


def reading_lines(upright: bool) -> list[str]:
    """How timm prepares an RGB image; `upright`: its EXIF orientation counts."""
    opened = 'Image.open("photo.jpg")'
    image = f"ImageOps.exif_transpose({opened})" if upright else opened
    return [
        "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))",
        f'image = {image}.convert("RGB")',
        "images = transform(image)[None]",
    ]


def band_lines(job: Job) -> list[str]:
    """timm's transforms are for RGB images."""
    height, width = height_and_width(job.size)
    return [f"images = torch.zeros(1, {job.cfg.DATA.IN_CHANS}, {height}, {width})  # yours, prepared as below"]


def resized_to(prepared: dict[str, Any]) -> str:
    """How an image's size changes before the crop, of `preprocessing`."""
    if "resize_shorter_side" in prepared:
        return f"to {prepared['resize_shorter_side']} px of the shorter side"
    (verb,) = (name.removeprefix("resize_") for name in prepared if name.startswith("resize_"))
    size = size_text(prepared[f"resize_{verb}"])
    border = f" with borders of the colour {prepared['border']}" if "border" in prepared else ""
    return f"{verb.replace('_', ' ')} {size} px{border}"


def training_lines(job: Job) -> list[str]:
    """The recipe, as far as the checkpoint's config and the run's result.json say it."""
    trained, result = job.trained, read_object(job.trained.path.with_name(RESULT))
    rows = [
        ("dataset", dataset_name(job)),
        ("weights", {"raw": "of the last update", "ema": "exponential moving average"}[trained.weights]),
    ]
    rows += [(name, _value(trained.cfg, key)) for name, key in RECIPE]
    rows += [
        ("seed", trained.cfg.SEED),
        *([("ended", result["ended"])] if "ended" in result else []),
        ("trained by commit", result.get("commit", "not recorded")),
        ("exported by commit", commit()),
    ]
    return [markdown_table([["", ""], *rows])]


def _value(cfg: CfgNode, key: str) -> str:
    return "not averaged" if key == "EMA.DECAY" and not cfg.EMA.ENABLED else str(value_of(cfg, key))
