"""An image with what is to be learned of it."""

from typing import Any, NamedTuple


class Sample(NamedTuple):
    """What goes through a transform as a whole, so that a crop or a flip can move masks and boxes with the image.

    A source gives image and target, a transform makes what a model's batch is collated of.
    """

    image: Any  # of the source: what its `decode` gives; then a `data.batches.Picture`, or several, its views
    target: Any  # a label, or whatever a task's sources and transform agree on: a mask's path, a dictionary of boxes
    key: str = ""  # which image it is, the same in each format; see `data.sources`
