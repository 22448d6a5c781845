"""A trained detector beside the same model untrained, and beside boxes that are the same in every image.

    python scripts/compare_detection.py output/fat_tiny/detection/best.pth

All three on the validation images that the checkpoint's config names. The boxes of the last one are each class' mean box of the training
images, in the left and in the right half of the image, scored by how often the class is there.
"""

import sys
from pathlib import Path
from typing import Optional, Sequence

import numpy as np
import torch

from command_line import Parser, importing, run_script


def main(argv: Optional[Sequence[str]] = None) -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    args = parser.parse_args(sys.argv[1:] if argv is None else argv)
    with importing():  # after the flags, as it takes seconds
        from parts.quickstart.comparison import Comparison, print_figures

    compared = Comparison(args.checkpoint, "detection")
    task = compared.task
    models = {
        "trained": compared.trained,
        "untrained": compared.untrained,
        "the same boxes in every image": SameBoxes(task.train_dataset().source, task.with_masks),
    }
    figures = {name: compared.figures_of(model)[0] for name, model in models.items()}
    print_figures({"box_ap": "box AP, %", "box_ap50": "box AP at IoU 0.5, %"}, figures)
    return 0


class SameBoxes(torch.nn.Module):
    """Gives each image the mean boxes of a source's objects, scaled to it, see above; masks are the whole boxes."""

    def __init__(self, source, with_masks: bool):
        super().__init__()
        self.with_masks = with_masks
        places: dict[tuple[int, bool], list[np.ndarray]] = {}
        for index in range(len(source)):
            target = source.target(index)
            for entry in target["objects"]:
                x, y, width, height = np.array(entry["bbox"]) / np.array([target["width"], target["height"]] * 2)
                places.setdefault((entry["label"], x + width / 2 > 0.5), []).append(
                    np.array([x, y, x + width, y + height])
                )
        most = sorted(places, key=lambda key: -len(places[key]))
        self.register_buffer(
            "boxes", torch.tensor(np.array([np.mean(places[key], axis=0) for key in most]), dtype=torch.float32)
        )
        self.register_buffer("labels", torch.tensor([label for label, _ in most]))
        self.register_buffer("scores", torch.tensor([len(places[key]) / len(source) for key in most]))

    def forward(self, images: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        found = []
        for image in images:
            height, width = image.shape[-2:]
            boxes = self.boxes * torch.tensor([width, height, width, height])
            entry = {"boxes": boxes, "labels": self.labels, "scores": self.scores}
            if self.with_masks:
                entry["masks"] = torch.zeros(len(boxes), 1, height, width)
                for mask, (x1, y1, x2, y2) in zip(entry["masks"], boxes.round().int().tolist()):
                    mask[:, y1:y2, x1:x2] = 1
            found.append(entry)
        return found


if __name__ == "__main__":
    run_script(main)
