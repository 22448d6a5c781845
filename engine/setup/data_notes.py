"""What is to be said of a data set before a run or an evaluation begins: what its figures rest on that nobody has set."""

from typing import Any, Iterable, Mapping, Optional, Sequence

from yacs.config import CfgNode

from data.class_order import describe_order
from utils.schema import FORMATS_WITH_OWN_ORDER, LIST


def source_notes(datasets: Iterable[Any]) -> list[str]:
    """Lines of what the data sets' sources leave out or take for granted, each once."""
    return list(dict.fromkeys(note for dataset in datasets for note in getattr(dataset.source, "notes", ())))


def order_note(cfg: CfgNode, classes: Sequence[str]) -> str:
    """A line of the order that the labels have, if another one is usual and DATA.CLASS_MAP does not settle it; else ''.

    To be said where weights may come from elsewhere, and no checkpoint names its classes.
    """
    named = cfg.DATA.CLASS_MAP or cfg.SEG.CLASSES  # in a file of the user's
    if named or cfg.DATA.DATASET.partition("/")[0] in (*FORMATS_WITH_OWN_ORDER, LIST):  # a list says its own
        return ""
    return describe_order(classes, cfg.DATA.CLASS_ORDER)


def share_note(cfg: CfgNode, trained: Optional[Mapping[str, Any]]) -> str:
    """A line of what a checkpoint may have been trained on, as it had another DATA.VAL_SHARE; else ''.

    Args:
        trained: the checkpoint's config, if it has one.
    """
    if not cfg.DATA.VAL_SHARE:
        return ""
    names = ("VAL_SHARE", "VAL_SEED", "TRAIN_SPLIT")
    here = {name: cfg.DATA[name] for name in names}
    there = {name: (trained or {}).get("DATA", {}).get(name) for name in names}
    if here == there:
        return ""
    differences = ", ".join(
        f"DATA.{name} {here[name]} (trained with {there[name]})" for name in names if here[name] != there[name]
    )
    return f"{differences}: images that the checkpoint was trained on can be among the validation images"
