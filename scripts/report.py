"""Writes a run's report.html anew, of a finished run or of one that is under way: python scripts/report.py output/fat_b0/default

Of several runs each one that can be read; the exit status is that of the first error, 0 without one.
"""

import sys
from pathlib import Path
from typing import Optional, Sequence

from command_line import Parser, run_script
from utils.errors import UserError, printable


def main(argv: Optional[Sequence[str]] = None) -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders of runs")
    args = parser.parse_args(sys.argv[1:] if argv is None else argv)
    from engine.report.page import write_report  # takes seconds

    status = 0
    for run in args.runs:
        try:
            print(f"wrote {printable(write_report(run))}", flush=True)
        except UserError as error:
            print(f"error: {printable(error)}", file=sys.stderr)
            status = status or error.status
    return status


if __name__ == "__main__":
    run_script(main)
