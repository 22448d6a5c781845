"""A trained segmentation model beside the same model untrained and beside the most frequent class for every pixel.

    python scripts/compare_segmentation.py output/fat_tiny/stamps/best.pth

All three on the validation images that the checkpoint's config names.
"""

import sys
from pathlib import Path
from typing import Any, Optional, Sequence

import numpy as np
import torch

from command_line import Parser, run_script
from utils.errors import ConfigError
from utils.markdown import aligned_table


def main(argv: Optional[Sequence[str]] = None) -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    args = parser.parse_args(sys.argv[1:] if argv is None else argv)
    rows = [["model", "mIoU, %", "mAcc, %", "aAcc, %"]]
    for name, figures in compared(args.checkpoint).items():
        rows.append([name, *(f"{figures[key]:.2f}" for key in ("miou", "macc", "aacc"))])
    print(aligned_table(rows))
    return 0


def compared(checkpoint: Path) -> dict[str, dict[str, Any]]:
    """The figures by what has them."""
    from engine.inference.examination import Examination
    from engine.inference.trained import load_trained
    from engine.tasks import create_task
    from utils.rng import seed_all

    trained, device = load_trained(checkpoint), torch.device("cpu")
    if trained.cfg.TASK != "segmentation":
        raise ConfigError(f"{checkpoint}: is of TASK {trained.cfg.TASK}; give a segmentation model's")
    task = create_task(trained.cfg)
    seed_all(trained.cfg.SEED)
    untrained = task.build_model(len(trained.classes))
    images, figures = task.val_dataset(trained.classes), {}
    for name, model in (("trained", trained.model), ("untrained", untrained)):
        examination = Examination(trained.cfg, model, device)
        evaluator = task.evaluator("figures", device)
        figures[name] = examination.run(examination.loader(images), evaluator)
    figures["all pixels of the most frequent class"] = of_one_class(evaluator.confusion.gather())
    return figures


def of_one_class(counts: np.ndarray) -> dict[str, float]:
    """The figures where every pixel is taken for the class that most have; `counts` as of a `ConfusionMatrix`."""
    shares = counts.sum(1) / counts.sum()
    classes = int((shares > 0).sum())
    return {"miou": 100 * shares.max() / classes, "macc": 100 / classes, "aacc": 100 * shares.max()}


if __name__ == "__main__":
    run_script(main)
