"""A trained segmentation model beside the same model untrained and beside the most frequent class for every pixel.

    python scripts/compare_segmentation.py output/fat_tiny/stamps/best.pth

All three on the validation images that the checkpoint's config names.
"""

import sys
from pathlib import Path
from typing import Optional, Sequence

import numpy as np

from command_line import Parser, importing, run_script


def main(argv: Optional[Sequence[str]] = None) -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    args = parser.parse_args(sys.argv[1:] if argv is None else argv)
    with importing():  # after the flags, as it takes seconds
        from parts.quickstart.comparison import Comparison, print_figures

    compared = Comparison(args.checkpoint, "segmentation")
    figures, evaluator = compared.figures_of(compared.trained)
    rows = {
        "trained": figures,
        "untrained": compared.figures_of(compared.untrained)[0],
        "all pixels of the most frequent class": of_one_class(evaluator.confusion.gather()),
    }
    print_figures({"miou": "mIoU, %", "macc": "mAcc, %", "aacc": "aAcc, %"}, rows)
    return 0


def of_one_class(counts: np.ndarray) -> dict[str, float]:
    """The figures where every pixel is taken for the class that most have; `counts` as of a `ConfusionMatrix`."""
    shares = counts.sum(1) / counts.sum()
    classes = int((shares > 0).sum())
    return {"miou": 100 * shares.max() / classes, "macc": 100 / classes, "aacc": 100 * shares.max()}


if __name__ == "__main__":
    run_script(main)
