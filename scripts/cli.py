"""What command lines share: arguments with errors of one line, and an end with a status."""

import argparse
import math
import signal
import sys
from pathlib import Path
from typing import Callable, NoReturn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from utils.errors import ConfigError, OutputError, Stopped, UserError, did_you_mean, printable  # noqa: E402


class Parser(argparse.ArgumentParser):
    """argparse with errors of one line."""

    def __init__(self, *args, **settings):
        super().__init__(*args, **{"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False, **settings})

    def parse_args(self, args=None, namespace=None):
        args, unknown = self.parse_known_args(args, namespace)
        if unknown:
            parsers = [self, *(own for action in self._actions if isinstance(action.choices, dict) for own in action.choices.values())]
            flags = dict.fromkeys(flag for parser in parsers for action in parser._actions for flag in action.option_strings)
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
    parser.add_argument(
        "--weights", choices=["raw", "ema"],
        help="default: the average (ema) of a run's best checkpoint if that was what was best, and of another tool's if it has one; else raw",
    )  # fmt: skip


def run_and_leave(main: Callable[[], int]) -> NoReturn:
    """Ends with the status that `main` returns; its errors are one line, and a scheduler's SIGTERM ends it as Ctrl-C does."""
    for stream in filter(None, (sys.stdout, sys.stderr)):
        stream.reconfigure(errors="backslashreplace")  # names of files and classes may have characters that a terminal's encoding lacks
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        sys.exit(main())
    except UserError as error:
        status, line = error.status, str(error)
    except Stopped as stopped:
        status, line = Stopped.status, str(stopped)
    except BrokenPipeError:  # of `| head`
        sys.stdout = None
        sys.exit(141)
    except OSError as error:
        status, line = OutputError.status, f"{error.filename or 'a file'}: cannot be used ({error.strerror or error}); check it and its permissions"
    except KeyboardInterrupt:
        sys.exit(130)
    print(f"error: {printable(line)}", file=sys.stderr)
    sys.exit(status)
