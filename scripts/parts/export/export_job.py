"""What every format needs: the model, real images to compare with, and files that are wholly there or not at all."""

import contextlib
import importlib
import math
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any, Callable, Iterator, Optional, Sequence

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import Subset
from yacs.config import CfgNode

import models
from data.loader import Loader
from data.sources.image_paths import find_images
from data.stream import StreamDataset
from engine.inference.engines.tracing import MAX_BATCH, first_line  # noqa: F401  (for the formats)
from engine.inference.examination import Examination
from engine.inference.trained import Trained
from engine.setup.precision import create_precision
from engine.tasks import create_task
from utils.conflicts import is_rgb
from utils.errors import ConfigError, DataError, UserError, printable
from utils.files import unwritable, write_json
from utils.image_size import Size, height_and_width
from utils.provenance import record

CPU = torch.device("cpu")
MOST_IMAGES = 64  # to compare logits of
# px where sizes are dynamic: to torch.export a last map of a single row or column is another program
SIZES = (33, 4096)


class ExportError(UserError):
    """A model that this format does not take, or an exported one with other logits."""

    status = 1


@dataclass(frozen=True)
class Options:
    """How a model is exported, and what is asked of the result."""

    bound: float = 1e-3  # largest difference between logits, in their standard deviation over images and classes
    dynamic_size: bool = False  # whether the exported model takes images of any height and width
    opset: int = 20  # of ONNX files
    calibration_images: int = 512  # of int8
    max_drop: float = 1.0  # of int8: points of top-1 that it may lose
    precision: str = "float32"  # or 'bfloat16', in which the exported model is to be run (openvino)


class Job:
    """One model to be exported.

    Args:
        trained: the model.
        output: folder of the files.
        images: files and folders of images to compare logits of; none: the model's validation images.
        data_path: in place of the checkpoint's DATA.DATA_PATH.
        options: see there.
    """

    def __init__(
        self,
        trained: Trained,
        output: Path,
        images: Sequence[Path] = (),
        data_path: str = "",
        options: Options = Options(),
    ):
        self.trained, self.output, self.paths, self.options = trained, output, images, options
        self.cfg = trained.cfg.clone()
        self.cfg.defrost()
        self.cfg.DATA.DATA_PATH = data_path or self.cfg.DATA.DATA_PATH
        self.name = "".join(c if c.isalnum() or c in "-_." else "_" for c in self.cfg.MODEL.NAME)
        self.fused = isinstance(trained.model, models.FAT)
        self.size = trained.own_size

    @cached_property
    def model(self) -> nn.Module:
        """The deployed form of a FAT, another model as it is; in evaluation mode."""
        return models.fuse(self.trained.model) if self.fused else self.trained.model

    # Images

    def loader(self, split: str, most: int = 0, one_view: bool = False) -> Loader:
        """A split's images as the evaluation sees them; of `most` or fewer from all over it, of shards the first ones.

        Raises:
            UserError: they are not there, or of other classes.
        """
        cfg = self.cfg.clone()
        cfg.DATA.VAL_SPLIT = split
        cfg.TEST.CROPS = 1 if one_view else cfg.TEST.CROPS
        dataset = create_task(cfg).val_dataset(self.trained.classes)
        if most and not isinstance(dataset, StreamDataset):
            count = min(most, len(dataset))
            spread = Subset(dataset, [i * len(dataset) // count for i in range(count)])
            spread.collate = dataset.collate
            dataset = spread
        return self.examination(self.trained.model).loader(dataset, batch_size=32, num_workers=0)

    def examination(self, model: nn.Module) -> Examination:
        """A model's evaluation as exports are compared: on the CPU, in float32, the model's weights as they lie."""
        cfg = self.cfg.clone()
        cfg.TRAIN.CHANNELS_LAST = False
        return Examination(cfg, model, CPU, precision=create_precision(False, "auto", CPU))

    def first(self, split: str, most: int) -> torch.Tensor:
        """So many of a split's images, or fewer: (N, 3, H, W)."""
        batches, total = [], 0
        for batch in self.loader(split, most, one_view=True):
            if isinstance(batch.images, list):
                raise DataError(f"{split}: its images have sizes of their own; give image files or a folder")
            batches.append(batch.images)
            total += len(batch.images)
            if total >= most:
                break
        if not batches:
            raise DataError(f"{split}: none of its images could be read; give other ones")
        return torch.cat(batches)[:most].contiguous()

    @cached_property
    def images(self) -> torch.Tensor:
        """Real images to compare logits of, normalised: (N, 3, H, W), at most `MOST_IMAGES`.

        Raises:
            DataError: there are none.
        """
        if self.paths:
            return self._read(image_files(self.paths))
        try:
            return self.first(self.cfg.DATA.VAL_SPLIT, MOST_IMAGES)
        except UserError as error:
            raise DataError(
                f"--images: not given, and the checkpoint's validation images cannot be used ({error}); give image files or a folder"
            ) from error

    def require_images(self) -> None:
        """Reads `images` now, so that what is wrong with them is said before the model is traced, which takes longer.

        Raises:
            DataError: there are none.
        """
        _ = self.images

    def _read(self, files: Sequence[Path]) -> torch.Tensor:
        pictures = []
        for path in files:
            try:
                pictures.append(self.trained.read(path))
            except DataError as error:
                print(f"warning: left out {printable(error)}", file=sys.stderr)
            if len(pictures) == MOST_IMAGES:
                break
        if not pictures:
            raise DataError("--images: none of them can be read; give image files, or folders of them")
        return self.trained.normalise(pictures).contiguous()

    # What is compared

    def shapes(self, smallest: int) -> list[tuple[int, int]]:
        """Heights and widths to compare at: the model's own and, if they are dynamic, others, in no relation to each other."""
        height, width = own = height_and_width(self.size)
        if not self.options.dynamic_size:
            return [own]
        others = [(2 * height, 2 * width), (height + 43, width + 17), (smallest, 75), (96, smallest), (64, 160)]
        return list(dict.fromkeys([own, *others]))

    def batches(self, smallest: int = SIZES[0]) -> Iterator[torch.Tensor]:
        """Real images in batches of several numbers and, if these are dynamic, sizes."""
        total = len(self.images)
        for height, width in self.shapes(smallest):
            at_own = (height, width) == height_and_width(self.size)
            for count in (
                sorted({1, 2, min(7, total), total} & set(range(total + 1))) if at_own else sorted({1, min(3, total)})
            ):
                batch = self.images[:count]
                yield batch if at_own else F.interpolate(batch, (height, width), mode="bilinear", antialias=True)

    @torch.inference_mode()
    def compare(
        self, exported: Callable[[torch.Tensor], torch.Tensor], smallest: int = SIZES[0], bound: Optional[float] = None
    ) -> dict[str, Any]:
        """How far an exported model's logits are from those of the model as it was trained; prints it.

        Args:
            bound: in place of the job's.

        Raises:
            ExportError: further than the bound.
        """
        bound = self.options.bound if bound is None else bound
        worst, spread, same, seen, shapes = 0.0, 0.0, 0, 0, []
        for batch in self.batches(smallest):
            expected, logits = self.trained.model(batch), exported(batch)
            if logits.shape != expected.shape:
                raise ExportError(
                    f"--checkpoint: the exported model gives {tuple(logits.shape)} for images {tuple(batch.shape)}, the model {tuple(expected.shape)}"
                )
            gap = (logits - expected).abs().max().item()
            spread = expected.std(correction=0).item() if len(batch) == len(self.images) and not spread else spread
            worst = max(worst, gap) if math.isfinite(gap) else math.inf
            same += (logits.argmax(1) == expected.argmax(1)).sum().item()
            seen += len(batch)
            shapes.append("x".join(map(str, batch.shape)))
        relative = worst / spread if spread else math.inf * worst if worst else 0.0
        if not relative <= bound:
            raise ExportError(
                f"--bound: the exported model's logits differ by up to {worst:.3g}, {relative:.3g} of their standard deviation, more than "
                f"{bound:g}; nothing is written"
            )
        print(
            f"  largest difference {worst:.3g}, {relative:.3g} of the logits' standard deviation (bound {bound:g}); same class {same} of {seen}"
        )
        print(f"  compared at {', '.join(shapes)}")
        return {
            "images": len(self.images),
            "shapes": shapes,
            "max_difference": worst,
            "relative": relative,
            "bound": bound,
            "same_class": [same, seen],
        }

    # What is said of the model

    def description(self) -> dict[str, Any]:
        """What a user of the file must know: its images, how to prepare them, its classes, and where it comes from."""
        trained, cfg = self.trained, self.cfg
        sides = ["height", "width"] if self.options.dynamic_size else [*height_and_width(self.size)]
        return {
            "model": cfg.MODEL.NAME,
            "fused": self.fused,
            "input": {
                "name": "images",
                "dtype": "float32",
                "shape": ["batch", self.cfg.DATA.IN_CHANS, *sides],
                "layout": "contiguous NCHW" + ", RGB" * is_rgb(self.cfg),
            },
            "output": {"name": "logits", "dtype": "float32", "shape": ["batch", len(trained.classes)]},
            "preprocessing": preprocessing(trained),
            "classes": trained.classes,
            "names": trained.names,
            "checkpoint": trained.path.name,
            "weights": trained.weights,
            **record(CPU),
        }

    # Files

    @contextlib.contextmanager
    def staged(self, folder: Optional[Path] = None) -> Iterator[Path]:
        """A temporary folder whose files come to the job's (or another) folder at the end; after an error none does.

        Raises:
            OutputError: the folder cannot be written to.
        """
        folder = folder or self.output
        temporary, new = None, [path for path in (folder, *folder.parents) if not path.exists()]  # the deepest first
        try:
            folder.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(prefix=f".{os.getpid()}-", suffix=".tmp", dir=folder))
            yield temporary
            # what describes comes last
            for path in sorted(temporary.iterdir(), key=lambda path: path.suffix in (".json", ".md")):
                with open(path, "rb") as file:
                    os.fsync(file.fileno())
                os.replace(path, folder / path.name)
                print(f"  wrote {folder / path.name}", flush=True)
        except OSError as error:
            raise unwritable(folder, error) from error
        finally:
            if temporary:
                shutil.rmtree(temporary, ignore_errors=True)
            for path in new:
                with contextlib.suppress(OSError):  # it has files
                    path.rmdir()

    def describe(self, staged: Path, file: str, compared: dict[str, Any], **more: Any) -> None:
        """Writes what is said of a file beside it, as <file>.json."""
        write_json(staged / f"{file}.json", {"file": file, **self.description(), "compared": compared, **more})


def preprocessing(trained: Trained) -> dict[str, Any]:
    """How the evaluation prepares an image file, so that others can do the same."""
    cfg, size = trained.cfg, trained.own_size
    return {
        "colour": "RGB; transparent pixels over white"
        if is_rgb(cfg)
        else f"{cfg.DATA.IN_CHANS} bands, as the file has them",
        "exif_upright": cfg.DATA.EXIF,
        **resizing(cfg, size),
        "interpolation": cfg.DATA.INTERPOLATION,
        "crop": "center",
        "crop_size": size,
        "crop_pct": cfg.TEST.CROP_PCT,
        "scale": "divided by 255" if is_rgb(cfg) else "uint8 divided by 255, uint16 by 65535, floats as they are",
        "mean": list(cfg.DATA.MEAN),
        "std": list(cfg.DATA.STD),
        "evaluated_with": {"crops": cfg.TEST.CROPS, "flip": cfg.TEST.FLIP},  # 1 and False: one view, as above
    }


def resizing(cfg: CfgNode, size: Size) -> dict[str, Any]:
    """What is done before the crop, of TEST.CROP_MODE; sizes are [height, width]."""
    if cfg.TEST.CROP_MODE == "center" and isinstance(size, int):
        return {"resize_shorter_side": math.floor(size / cfg.TEST.CROP_PCT)}
    to = [math.floor(side / cfg.TEST.CROP_PCT) for side in height_and_width(size)]
    if cfg.TEST.CROP_MODE == "border":
        border = [round(255 * level) for level in cfg.DATA.MEAN] if is_rgb(cfg) else list(cfg.DATA.MEAN)
        return {"resize_into": to, "border": border}
    return {"resize_to" if cfg.TEST.CROP_MODE == "squash" else "resize_to_cover": to}


def image_files(paths: Sequence[Path]) -> list[Path]:
    """The files, and the image files in the folders and theirs, sorted.

    Raises:
        DataError: a path that is not there, or a folder without images.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside, problems, _ = find_images([str(path)])
            if not inside:
                raise DataError(f"--images: {problems[0]}; give another folder")
            count = min(MOST_IMAGES, len(inside))
            found += [Path(inside[i * len(inside) // count]) for i in range(count)]
        elif path.is_file():
            found.append(path)
        else:
            raise DataError(f"--images: {path} is not there; give image files or a folder")
    return found


def needed(*packages: str) -> list[ModuleType]:
    """The modules of optional packages.

    Raises:
        ConfigError: one is not installed.
    """
    try:
        return [importlib.import_module(package) for package in packages]
    except ImportError as error:
        raise ConfigError(
            f"{error.name or packages[0]}: cannot be imported ({error}); pip install {' '.join(packages)}"
        ) from error
