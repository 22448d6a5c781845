"""Trains to the last epoch, from the run's newest checkpoint if it has one."""

from typing import Any, Optional

from utils.files import write_text
from utils.lock import RunLock
from utils.run_files import CONFIG, RESULT, SPLIT, read_object
from utils.signals import stop_signals

from ..checkpoints.resume import StartPoint
from ..checkpoints.run_folder import claim
from ..report.page import write_if_possible
from ..session import Session
from ..training.recorder import describe_best
from ..training.start import find_for_all, is_finished, prepare


def train(session: Session) -> Optional[dict[str, Any]]:
    """Trains to the last epoch, from the run's newest checkpoint if it has one; a finished run is left alone.

    Returns:
        What the run's result.json says, on the process that writes it; {} where a finished run has none.
    """
    start = find_for_all(session)
    if not is_finished(session, start):
        train_from(session, start)
    return read_object(session.directory / RESULT) if session.is_first else None


def train_from(session: Session, start: StartPoint) -> None:
    """Trains from this point to the last epoch, and writes the run's files."""
    cfg, directory, log = session.cfg, session.directory, session.log
    run = prepare(session, start)
    trainer, lock = run.trainer, RunLock(directory)
    try:
        if session.is_first:
            lock.acquire()
            claim(directory, start, cfg.TRAIN.AUTO_RESUME)
            log.open()
            log.open_records(trainer.progress.updates if start.path else -1, trainer.progress.epoch)
            write_text(directory / CONFIG, cfg.dump())
            trainer.data.write_split(directory / SPLIT)
        session.peers.meet()  # nobody goes on before the folder is rank 0's
        run.introduce()
        run.fill_caches()
        start.checkpoint = None  # its memory is free for the training
        with stop_signals(session.peers.stop):
            trainer.fit()
        early = trainer.length.early(trainer.progress.epoch)
        log.info(
            f"finished{early and f', {early}'}: best {describe_best(trainer.progress.best)}; everything is in {directory}"
        )
        if cfg.REPRODUCES and trainer.recorder.facts["imagenet"]:
            target = cfg.REPRODUCES.rpartition("/")[0] or "classification"
            log.info(
                f"`python scripts/reproduce.py {target} --runs {directory}` puts it into the tables, "
                f"if it is the recipe of configs/{cfg.REPRODUCES}.yaml"
            )
        if session.is_first:
            write_if_possible(directory, log)
        log.close()
    finally:
        log.abandon()
        lock.release()
