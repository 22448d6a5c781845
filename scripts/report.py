"""Writes a run's report.html anew, of a finished run or of one that is under way: python scripts/report.py output/fat_b0/default"""

import sys
from pathlib import Path
from typing import Optional, Sequence

from cli import Parser, run_and_leave


def main(argv: Optional[Sequence[str]] = None) -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders of runs")
    args = parser.parse_args(sys.argv[1:] if argv is None else argv)
    from engine.report import write_report  # takes seconds

    for run in args.runs:
        print(f"wrote {write_report(run)}")
    return 0


if __name__ == "__main__":
    run_and_leave(main)
