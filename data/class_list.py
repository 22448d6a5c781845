"""The names of a data set's classes, where they do not come from its folders."""

from pathlib import Path

from utils.errors import DataError
from utils.schema import CONFIGS

KNOWN = CONFIGS / "segmentation" / "classes"  # a file for each name that stands for a list


def read_class_list(name: str, key: str) -> list[str]:
    """The classes in label order.

    Args:
        name: a text file with a name per line, or the name of a list that lies in `KNOWN`.
        key: the config's that has it.

    Raises:
        DataError: it cannot be read, or does not name two or more different classes.
    """
    known = KNOWN / f"{name}.txt"
    path = known if name and "/" not in name and known.is_file() else Path(name)
    if not name:
        lists = ", ".join(sorted(path.stem for path in KNOWN.glob("*.txt")))
        raise DataError(f"{key}: is not set; give a text file with a class' name per line, or one of {lists}")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise DataError(f"{key}: {path} cannot be read ({reason}); give a text file with a name per line") from error
    classes = [line.strip() for line in lines if line.strip()]
    repeated = next((one for one in classes if classes.count(one) > 1), None)
    if repeated is not None:
        raise DataError(f"{key}: {path} has the class {repeated!r} more than once; each needs a name of its own")
    if len(classes) < 2:
        raise DataError(
            f"{key}: {path} names {len(classes)} classes; a pixel's is chosen among two or more: add one, such as background"
        )
    return classes
