"""One image out of a source: what goes wrong on the way becomes a line that names the image."""

from typing import Any, BinaryIO, Callable, ContextManager

from utils.errors import ConfigError, DataError
from utils.files import is_of_the_machine, unreadable_now

from ..bands import WrongBands

OR_SKIP = ", or set DATA.ON_ERROR skip"  # what a run offers besides


def read_image(
    name: str, opened: Callable[[], ContextManager[BinaryIO]], decode: Callable[[BinaryIO], Any], remedy: str
) -> Any:
    """What `decode` makes of an image's open file.

    Args:
        name: of the image, for messages.
        opened: opens it; what this raises is an error of the image too.
        decode: open file -> image.
        remedy: what the user can do about an image that cannot be read.

    Raises:
        DataError: it is no image.
        OutputError: it cannot be read just now.
    """
    empty = False
    try:
        with opened() as file:
            empty = not file.read(1)
            file.seek(0)
            return decode(file)
    except (MemoryError, DataError, ConfigError):
        raise
    except WrongBands as error:
        raise DataError(name, str(error), f"set that to {error.there}, or {remedy}") from error
    except Exception as error:  # Pillow's readers raise of many kinds at damaged files
        if is_of_the_machine(error):
            raise unreadable_now(name, error) from error
        kind = type(error).__name__
        reason = f"{kind}: {error.strerror if isinstance(error, OSError) and error.strerror else error}"
        if name.rsplit("/", 1)[-1].startswith("._"):
            reason = "it holds macOS metadata of another file"
        elif kind == "UnidentifiedImageError":
            reason = "empty" if empty else "no image of a known format"
        raise DataError(name, f"cannot be read as an image ({' '.join(reason.split())})", remedy) from error


def printable(name: str) -> str:
    return name if name.isprintable() else repr(name)
