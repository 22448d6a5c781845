"""Which process of a run this one is, as its launcher says it: torchrun, srun, mpirun, or none. Needs no torch."""

import os
import zlib
from dataclasses import dataclass
from typing import Mapping, Optional

from ..errors import ConfigError
from . import slurm

# below the ports that Linux gives to outgoing connections (32768 on), which may be taken at any moment
FIRST_PORT, PORTS = 12000, 20000
USUAL_PORT = 29500  # torchrun's, where nothing tells one run of a machine from another
RANK_VARIABLES = ("RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "SLURM_PROCID")


@dataclass(frozen=True)
class Launch:
    """Where this process stands among those that a launcher started."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0  # among those of this machine
    local_size: int = 1  # how many those are
    own_gpu: bool = False  # the launcher shows each process one GPU, its own

    @property
    def gpu(self) -> int:
        """This process' GPU, among those that it sees."""
        return 0 if self.own_gpu else self.local_rank

    @property
    def spans_machines(self) -> bool:
        return self.local_size < self.world_size


def read_launch(environ: Mapping[str, str], local_rank: Optional[int] = None) -> Launch:
    """Reads what the launcher says of this process; without one it is the only process.

    - torchrun and torch.distributed.launch set RANK, WORLD_SIZE, LOCAL_RANK (or pass --local-rank, given here as
      `local_rank`), LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT.
    - Open MPI's mpirun sets OMPI_COMM_WORLD_*, that of MPICH and Intel PMI_RANK, PMI_SIZE and MPI_LOCAL*.
    - srun sets SLURM_STEP_NUM_TASKS, SLURM_PROCID, SLURM_LOCALID, SLURM_NODEID and SLURM_STEP_TASKS_PER_NODE.

    torchrun's come first, as mpirun or srun may have started one agent per machine; then mpirun's, as inside a Slurm
    job it starts its own helpers by srun.

    Raises:
        ConfigError: the variables are incomplete, no numbers, or contradict one another.
    """
    try:
        launch = _torchrun(environ, local_rank) or _open_mpi(environ) or _mpich(environ) or _srun(environ)
    except (ValueError, KeyError, IndexError) as error:
        raise ConfigError(
            f"launcher's environment: {error} is missing or wrong; start with torchrun, srun or mpirun"
        ) from error
    if launch is None:
        _refuse_other_mpi(environ)
        return Launch()
    if not 0 <= launch.rank < launch.world_size:
        raise ConfigError(f"RANK is {launch.rank} of WORLD_SIZE {launch.world_size}; start with torchrun or srun")
    return launch


def stated_rank(environ: Mapping[str, str]) -> str:
    """The rank as the environment has it, whether or not the rest makes sense."""
    return next((environ[name] for name in RANK_VARIABLES if name in environ), "0")


def available_cores(processes: int) -> int:
    """The cores that each of so many processes of this machine may use, at least 1."""
    return max(1, len(os.sched_getaffinity(0)) // processes)


def meeting_place(launch: Launch, environ: Mapping[str, str]) -> dict[str, str]:
    """MASTER_ADDR and MASTER_PORT, where all processes meet: as set, or as each derives them from the launcher's variables.

    Raises:
        ConfigError: the run spans machines, and nothing says which one has rank 0.
    """
    address, port = environ.get("MASTER_ADDR"), environ.get("MASTER_PORT")
    if address is None:
        address = _first_machine(environ) if launch.spans_machines else "127.0.0.1"
    return {"MASTER_ADDR": address, "MASTER_PORT": port or str(_port_of_run(environ))}


def _torchrun(environ: Mapping[str, str], local_rank: Optional[int]) -> Optional[Launch]:
    if "RANK" not in environ or "WORLD_SIZE" not in environ:
        return None
    local = environ.get("LOCAL_RANK", local_rank)
    if local is None:
        raise ConfigError("LOCAL_RANK: not set by the launcher; use torchrun, or pass --local-rank")
    rank, size = int(environ["RANK"]), int(environ["WORLD_SIZE"])
    if size > 1:
        environ["MASTER_ADDR"], int(environ["MASTER_PORT"])  # torch.distributed reads them
    has_agent = "TORCHELASTIC_RUN_ID" in environ
    others = int(environ.get("OMPI_COMM_WORLD_SIZE", environ.get("PMI_SIZE", size)))
    if others != size and not has_agent:  # else mpirun has started the agents
        raise ConfigError(
            f"WORLD_SIZE is {size}, and mpirun says {others} processes; unset RANK and WORLD_SIZE, or set them as mpirun does"
        )
    here = environ.get("LOCAL_WORLD_SIZE", "")
    local_size = int(here) if here.isdigit() and 0 < int(here) <= size else size
    # an agent shows all its processes the same GPUs
    return Launch(rank, size, int(local), local_size, not has_agent and _sees_one_gpu(environ))


def _open_mpi(environ: Mapping[str, str]) -> Optional[Launch]:
    if "OMPI_COMM_WORLD_SIZE" not in environ:
        return None
    names = ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")
    rank, size, local_rank, local_size = (int(environ[f"OMPI_COMM_WORLD_{name}"]) for name in names)
    return Launch(rank, size, local_rank, local_size, _sees_one_gpu(environ))


def _mpich(environ: Mapping[str, str]) -> Optional[Launch]:
    if "PMI_SIZE" not in environ or "MPI_LOCALRANKID" not in environ:  # without the latter it may be srun --mpi=pmi2
        return None
    names = ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS")
    rank, size, local_rank, local_size = (int(environ[name]) for name in names)
    return Launch(rank, size, local_rank, local_size, _sees_one_gpu(environ))


def _srun(environ: Mapping[str, str]) -> Optional[Launch]:
    size = int(environ.get("SLURM_STEP_NUM_TASKS", 1))
    if size == 1:
        return None
    here = size
    if int(environ.get("SLURM_STEP_NUM_NODES", 1)) > 1:
        here = slurm.tasks_of_nodes(environ["SLURM_STEP_TASKS_PER_NODE"])[int(environ["SLURM_NODEID"])]
    return Launch(int(environ["SLURM_PROCID"]), size, int(environ["SLURM_LOCALID"]), here, _sees_one_gpu(environ))


def _refuse_other_mpi(environ: Mapping[str, str]) -> None:
    """A process among several that takes itself for the only one would train alone, or fight for the run's folder."""
    if environ.get("SLURM_STEP_NUM_TASKS") == "1":
        return
    if int(environ.get("PMI_SIZE", 1)) > 1:
        missing = "of which on this machine (MPI_LOCALRANKID)"
    elif "PMIX_RANK" in environ:
        missing = "of how many (OMPI_COMM_WORLD_SIZE)"
    else:
        return
    raise ConfigError(
        f"PMI_RANK, PMIX_RANK: an MPI launcher has started this process and does not say {missing}; set RANK, WORLD_SIZE, "
        "LOCAL_RANK, MASTER_ADDR and MASTER_PORT, or start with torchrun or srun"
    )


def _sees_one_gpu(environ: Mapping[str, str]) -> bool:
    """By number, UUID (GPU-...) or MIG name: a task of `srun --gpus-per-task=1` sees its own GPU only."""
    visible = environ.get("CUDA_VISIBLE_DEVICES", "")
    return bool(visible) and "," not in visible


def _first_machine(environ: Mapping[str, str]) -> str:
    if "OMPI_COMM_WORLD_SIZE" in environ or "MPI_LOCALRANKID" in environ:
        raise ConfigError(
            "MASTER_ADDR: not set, and mpirun spans several machines; pass the first one's address, by Open MPI's "
            "`-x MASTER_ADDR=...` or MPICH's `-genv MASTER_ADDR ...`"
        )
    return slurm.step_host(environ)


def _port_of_run(environ: Mapping[str, str]) -> int:
    mpi_job = environ.get("PMIX_NAMESPACE") or environ.get("OMPI_MCA_ess_base_jobid")
    if "OMPI_COMM_WORLD_SIZE" in environ and mpi_job:
        return FIRST_PORT + zlib.crc32(mpi_job.encode()) % PORTS
    if "MPI_LOCALRANKID" in environ:
        return USUAL_PORT
    return FIRST_PORT + slurm.step_number(environ) % PORTS
