"""Does everything that precedes a run's first step."""

from ..session import Session
from ..training.start import find_for_all, is_finished, prepare


def check(session: Session) -> None:
    """Does everything that precedes a run's first step, and writes nothing but weights that a URL names."""
    start = find_for_all(session)
    if is_finished(session, start):
        return
    prepare(session, start).introduce()
    session.log.info("all checks passed; nothing was written")
