"""What is to be said of a data set before a run or an evaluation begins: what its figures rest on that nobody has set."""

from typing import Any, Iterable, Sequence

from yacs.config import CfgNode

from data.class_order import describe_order
from utils.schema import FORMATS_WITH_OWN_ORDER


def source_notes(datasets: Iterable[Any]) -> list[str]:
    """Lines of what the data sets' sources leave out or take for granted, each once."""
    return list(dict.fromkeys(note for dataset in datasets for note in getattr(dataset.source, "notes", ())))


def order_note(cfg: CfgNode, classes: Sequence[str]) -> str:
    """A line of the order that the labels have, if another one is usual and DATA.CLASS_MAP does not settle it; else ''.

    To be said where weights may come from elsewhere, and no checkpoint names its classes.
    """
    if cfg.DATA.CLASS_MAP or cfg.SEG.CLASSES or cfg.DATA.DATASET.partition("/")[0] in FORMATS_WITH_OWN_ORDER:
        return ""
    return describe_order(classes, cfg.DATA.CLASS_ORDER)
