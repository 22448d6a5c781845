"""What command lines share: arguments and imports with errors of one line."""

import argparse
import contextlib
import math
from typing import Callable, Iterator, NoReturn

from .errors import ConfigError, did_you_mean
from .image_size import Size


class Parser(argparse.ArgumentParser):
    """argparse with errors of one line."""

    def __init__(self, *args, **settings):
        super().__init__(
            *args, **{"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False, **settings}
        )

    def parse_args(self, args=None, namespace=None):
        args, unknown = self.parse_known_args(args, namespace)
        if unknown:
            parsers = [
                self,
                *(
                    own
                    for action in self._actions
                    if isinstance(action.choices, dict)
                    for own in action.choices.values()
                ),
            ]
            flags = dict.fromkeys(
                flag for parser in parsers for action in parser._actions for flag in action.option_strings
            )
            self.error(f"{unknown[0]}: unknown; {did_you_mean(unknown[0], flags)}")
        return args

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} (see --help)")


def whole_number(least: int, most: int = 10**9) -> Callable[[str], int]:
    """A type for argparse: a whole number from `least` to `most`."""

    def read(text: str) -> int:
        if not text.isascii() or not text.isdigit() or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {least} to {most}")
        return int(text)

    return read


def image_size(least: int = 32, most: int = 4096) -> Callable[[str], Size]:
    """A type for argparse: 224, or 192x320 (height x width), each side from `least` to `most` px."""
    side = whole_number(least, most)

    def read(text: str) -> Size:
        height, by, width = text.partition("x")
        if not by or height == width:
            return side(height)
        return [side(height), side(width)]

    return read


def number(what: str, holds: Callable[[float], bool]) -> Callable[[str], float]:
    """A type for argparse: a number for which `holds` is true; `what` says which those are."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not holds(value):
            raise argparse.ArgumentTypeError(f"{text!r} is no number {what}")
        return value

    return read


not_negative = number("of 0 or more", lambda value: 0 <= value < math.inf)


def add_weights(parser: argparse.ArgumentParser) -> None:
    """`--weights`: which of a checkpoint's are used."""
    parser.add_argument(
        "--weights", choices=["raw", "ema"],
        help="default: the average (ema) of a run's best checkpoint if that was what was best, and of another tool's if it has one; else raw",
    )  # fmt: skip


@contextlib.contextmanager
def importing(packages: str = "-r requirements.txt") -> Iterator[None]:
    """Says which package is missing, where a program imports its parts, and how to get it. Raises ConfigError."""
    try:
        yield
    except ImportError as error:
        name = error.name or "a package"
        raise ConfigError(f"{name}: cannot be imported ({error}); pip install {packages}") from error
