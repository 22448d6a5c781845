"""Weights & Biases. Its own variables (WANDB_MODE, WANDB_PROJECT, WANDB_ENTITY, WANDB_DIR, ...) say where a run goes."""

import contextlib
import importlib
import os
import secrets
import threading
from typing import Any, Callable, Mapping

import numpy as np

from ..errors import ConfigError, OutputError, one_line
from ..files import write_text
from .logger import Logger

ID_FILE = "wandb_id.txt"  # in the run's folder: a run that is gone on with is the same one there
PROJECT = "fat"  # unless WANDB_PROJECT names another
PATIENCE = 60  # seconds that the end waits for an upload


class WandbRun(Logger):
    """A failure after the start is said once and ends the logging to W&B, not the training."""

    run: Any = None

    @classmethod
    def require(cls) -> None:
        try:
            importlib.import_module("wandb").init  # a folder that is named so can be imported, too
        except (ImportError, AttributeError) as error:
            raise ConfigError(
                "LOGGERS: wandb: the package cannot be imported; pip install wandb, or take it out of the list"
            ) from error

    def open(self, last_update: int, epochs: int) -> None:
        """Raises ConfigError: W&B refuses, as nobody is logged in. A network that is down is said, and the run goes on."""
        self.require()
        import wandb

        path = self.directory / ID_FILE
        if last_update < 0 or not path.is_file():
            write_text(path, os.environ.get("WANDB_RUN_ID") or secrets.token_hex(6))
        name = "/".join(self.directory.parts[-2:])
        try:
            self.run = wandb.init(
                project=None if os.environ.get("WANDB_PROJECT") else PROJECT,
                name=None if os.environ.get("WANDB_NAME") else name,
                dir=None if os.environ.get("WANDB_DIR") else self.directory,
                id=path.read_text().strip(),
                resume="allow",
                config=dict(self.config),
                settings=wandb.Settings(silent=True, console="off", init_timeout=PATIENCE),
            )
            self.run.define_metric("update", hidden=True)
            # W&B's own step only rises; a resumed run repeats updates
            self.run.define_metric("*", step_metric="update")
        except (wandb.errors.UsageError, wandb.errors.AuthenticationError) as error:
            reason = one_line(error)
            raise ConfigError(
                f"LOGGERS: wandb refuses ({reason[:200]}); `wandb login`, or set WANDB_MODE=offline"
            ) from error
        except Exception as error:
            self._lost(error)

    def rewind(self, last_update: int, epochs: int) -> None:
        """Nothing can be taken back at W&B: an update that is repeated has two points."""

    def scalars(self, update: int, values: Mapping[str, float]) -> None:
        self._tell(lambda run: run.log({"update": update, **values}))

    def picture(self, name: str, picture: np.ndarray) -> None:
        import wandb

        self._tell(lambda run: run.log({name: wandb.Image(picture)}))

    def best(self, values: Mapping[str, Any]) -> None:
        self._tell(lambda run: run.summary.update({f"best/{key}": value for key, value in values.items()}))

    def close(self) -> None:
        self._finish(0)

    def abandon(self) -> None:
        self._finish(1)

    def _tell(self, what: Callable[[Any], None]) -> None:
        try:
            if self.run:
                what(self.run)
        except Exception as error:  # W&B's own, of the network, of the disk, of its process that is gone
            self._lost(error)

    def _lost(self, error: Exception) -> None:
        self.run = None
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        with contextlib.suppress(OutputError):  # the disk is full, which the training's own files will say
            self.warn(f"wandb: {reason[:200]}; the training goes on without it, metrics.jsonl has all figures")

    def _finish(self, status: int) -> None:
        """Sends the rest. An upload that takes too long is left to `wandb sync`: its files are whole."""
        run, self.run = self.run, None
        if not run:
            return
        failed: list[Exception] = []

        def finish() -> None:
            try:
                run.finish(exit_code=status)
            except Exception as error:
                failed.append(error)

        thread = threading.Thread(target=finish, daemon=True)
        thread.start()
        thread.join(PATIENCE)
        if thread.is_alive():
            self.warn(f"wandb: the upload is not done after {PATIENCE} s; `wandb sync {run.dir}/..` does the rest")
        elif failed:
            self._lost(failed[0])
