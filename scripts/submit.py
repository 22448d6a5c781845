"""Submits main.py to Slurm, or starts it on this machine, by submitit (pip install submitit), and has it started again.

    python scripts/submit.py --nodes 2 --gpus-per-node 8 --minutes 720 -- --cfg configs/fat_b0.yaml --data-path /path/to/imagenet
    python scripts/submit.py --cluster local --tasks-per-node 2 --wait -- --cfg configs/fat_b0.yaml --data-path /path/to/imagenet

What stands after `--` is main.py's. Before the job's time is up, or when it is preempted, submitit gets SIGUSR2: the run is asked
to save, and the job put back into the queue, where the run goes on from there. Exit status 0 if the job is submitted (with --wait:
if the run has finished), 2 for arguments, 5 if the run ends with an error.
"""

import ctypes
import os
import signal
import subprocess
import sys
from pathlib import Path

from command_line import ROOT, Parser, importing, run_script, whole_number
from engine.arguments import command_of, config_flags, parse_args
from utils.config import load_config
from utils.errors import ConfigError, ProcessError


class Training:
    """main.py with these arguments as one task of a submitit job; submitit calls it, and `checkpoint` when time is up."""

    def __init__(self, argv: list[str], root: str):
        self.argv, self.root = argv, root
        self.pid = 0

    def __call__(self) -> None:
        import submitit

        environment = dict(os.environ)
        job = submitit.JobEnvironment()
        if job.cluster == "local":  # Slurm's own variables say the same
            place = {"RANK": job.global_rank, "WORLD_SIZE": job.num_tasks, "LOCAL_RANK": job.local_rank}
            place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 12000 + int(job.job_id) % 20000}
            environment.update({name: str(value) for name, value in place.items()})
        command = [sys.executable, "main.py", *self.argv]
        process = subprocess.Popen(command, cwd=self.root, env=environment, preexec_fn=self.prepare)
        self.pid = process.pid
        status = process.wait()
        # a rank other than 0, which alone puts the job back into the queue, ends with it in peace
        if status and not (status == 143 and job.global_rank):
            raise RuntimeError(f"main.py has ended with exit status {status}")

    def prepare(self) -> None:
        """In main.py's process: submitit's signal is not for it, and if its task is gone it saves and ends."""
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG, see prctl(2)

    def checkpoint(self):
        """submitit's hook: asks main.py, all of whose processes stop at one step, to save; returns what to go on with."""
        import submitit

        if self.pid:
            os.kill(self.pid, signal.SIGUSR1)
            # not reaped, as `__call__`, in which this handler has come, waits for it too
            os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        return submitit.helpers.DelayedSubmission(Training(self.argv, self.root))


def main() -> int:
    own, given = split(sys.argv[1:])
    parser = Parser(description=__doc__)
    parser.add_argument("--cluster", choices=["slurm", "local"], help="default: slurm, where it is installed")
    parser.add_argument(
        "--folder", type=Path, default=ROOT / "output/jobs", help="of submitit's files and logs, shared by all nodes"
    )
    parser.add_argument("--name", default="fat", help="of the job")
    parser.add_argument("--nodes", type=whole_number(1), default=1)
    parser.add_argument("--gpus-per-node", type=whole_number(0), default=0)
    parser.add_argument("--tasks-per-node", type=whole_number(1), help="default: one for each GPU")
    parser.add_argument("--cpus-per-task", type=whole_number(1), default=8)
    parser.add_argument(
        "--minutes", type=whole_number(1), default=720, help="after which the job is stopped and put back"
    )
    parser.add_argument("--timeouts", type=whole_number(0), default=100, help="how often that may happen")
    parser.add_argument(
        "--signal-seconds", type=whole_number(1), default=180, help="before the time is up, for saving (Slurm)"
    )
    parser.add_argument(
        "--slurm", nargs="+", default=[], metavar="NAME=VALUE", help="further settings of sbatch: partition=gpu"
    )
    parser.add_argument("--wait", action="store_true", help="wait for the job's end")
    args = parser.parse_args(own)
    flags = parse_args(given)
    load_config(flags.cfg, flags.opts, config_flags(flags), command_of(flags))  # what is wrong is said now
    job = submit(args, given)
    print(f"job {job.job_id}: log in {job.paths.stdout}", flush=True)
    if args.wait:
        wait(job)
    return 0


def split(argv: list[str]) -> tuple[list[str], list[str]]:
    """This script's arguments, and main.py's, which stand after `--`."""
    if "--" not in argv and not {"-h", "--help"} & set(argv):
        raise ConfigError("--: missing; main.py's flags come after it, as in `submit.py --nodes 2 -- --cfg FILE`")
    place = argv.index("--") if "--" in argv else len(argv)
    return argv[:place], argv[place + 1 :]


def submit(args, given: list[str]):
    with importing("submitit"):
        import submitit

    pairs = [setting.partition("=") for setting in args.slurm]
    if not all(equals for _, equals, _ in pairs):
        raise ConfigError(f"--slurm {' '.join(args.slurm)}: settings are NAME=VALUE")
    timeouts = dict(slurm_max_num_timeout=args.timeouts, local_max_num_timeout=args.timeouts)
    try:
        executor = submitit.AutoExecutor(args.folder, cluster=args.cluster, **timeouts)
        executor.update_parameters(
            name=args.name,
            nodes=args.nodes,
            gpus_per_node=args.gpus_per_node,
            tasks_per_node=args.tasks_per_node or max(1, args.gpus_per_node),
            cpus_per_task=args.cpus_per_task,
            timeout_min=args.minutes,
            slurm_signal_delay_s=args.signal_seconds,
            slurm_additional_parameters={name: value for name, _, value in pairs},
        )
        return executor.submit(Training(given, str(ROOT)))
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"submitit: {' '.join(str(error).split())[:500]}; see --help") from error


def wait(job) -> None:
    """Raises ProcessError if the job's run ends with an error."""
    from submitit.core.utils import FailedJobError, UncompletedJobError

    try:
        job.wait()
        job.results()
    except (FailedJobError, UncompletedJobError) as error:
        # submitit's text has the job's traceback between other lines
        lines = str(error).strip().splitlines()
        reasons = [line.removeprefix("RuntimeError: ") for line in lines if line.startswith("RuntimeError: ")]
        reason = reasons[-1] if reasons else lines[0]
        raise ProcessError(
            f"job {job.job_id}: {reason}; its log {job.paths.stderr} has the line that says why"
        ) from error


if __name__ == "__main__":
    run_script(main)
