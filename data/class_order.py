"""In which order classes are numbered where nothing but their folders' names says it."""

from typing import Iterable, Optional, Sequence

from timm.utils.misc import natural_key

CLASS_ORDERS = ("torchvision", "timm")


def torchvision_order(names: Iterable[str]) -> list[str]:
    """By code points: 0, 1, 10, 2; Zebra, apple."""
    return sorted(names)


def timm_order(names: Iterable[str]) -> list[str]:
    """By the numbers in them, without regard to capitals: 0, 1, 2, 10; apple, Zebra.

    Names that differ in capitals alone have no order in timm; here they have torchvision's.
    """
    names = sorted(names)
    try:
        return sorted(names, key=natural_key)
    except ValueError:  # of digits such as a superscript two, at which timm's own readers end
        return names


def timm_map(classes: Sequence[str]) -> Optional[dict[str, int]]:
    """Class name -> label in timm's order; None: it is that of `classes`, or these have an order of their own."""
    ordered = timm_order(classes)
    if list(classes) == ordered or list(classes) != torchvision_order(classes):
        return None
    return {name: label for label, name in enumerate(ordered)}


def describe_order(classes: Sequence[str], class_order: str) -> str:
    """What to say of the labels where no checkpoint names its classes; '' where there is nothing to mistake.

    Args:
        classes: names, in label order.
        class_order: DATA.CLASS_ORDER.
    """
    orders = {"torchvision": torchvision_order(classes), "timm": timm_order(classes)}
    if orders["torchvision"] == orders["timm"]:
        return ""
    used = next((name for name, order in orders.items() if order == list(classes)), "")
    if not used:
        ignored = class_order != CLASS_ORDERS[0]
        return (
            f"DATA.CLASS_ORDER {class_order} changes nothing, as the data set names an order of its own"
            if ignored
            else ""
        )
    other = next(name for name in orders if name != used)
    label = next(label for label, name in enumerate(classes) if orders[other][label] != name)
    return (
        f"labels are the classes' places in {used}'s order of their names: {label} is {classes[label]!r}, in {other}'s order it "
        f"were {orders[other][label]!r}; for weights that were trained with that one set DATA.CLASS_ORDER {other}, or DATA.CLASS_MAP"
    )
