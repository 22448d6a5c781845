"""Who a process is: what torchrun, srun and mpirun say of it, pretended and, where they are installed, for real."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from conftest import ROOT, Job, free_port
from slurm_cluster import CLEAN, slurm
from utils.device import select_device
from utils.errors import ConfigError
from utils.processes.launch import Launch, meeting_place, read_launch, stated_rank
from utils.processes.slurm import first_host, tasks_of_nodes

TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
SRUN = {
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "2",
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_ID": "0",
}
# three machines, as `srun -N3 -n7` with two, two and three tasks
SRUN_NODES = {
    **SRUN, "SLURM_STEP_NUM_TASKS": "7", "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NODEID": "1",
    "SLURM_STEP_NUM_NODES": "3", "SLURM_STEP_TASKS_PER_NODE": "2(x2),3", "SLURM_STEP_NODELIST": "node[03-04,9]",
}  # fmt: skip
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2", "OMPI_MCA_ess_base_jobid": "602865665", "PMIX_RANK": "3",
}  # fmt: skip
MPICH = {"PMI_RANK": "3", "PMI_SIZE": "4", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}


@pytest.mark.parametrize("environ, launch", [
    ({}, Launch()),
    (TORCHRUN, Launch(5, 8, 1, 8)),
    ({**TORCHRUN, "LOCAL_WORLD_SIZE": "4"}, Launch(5, 8, 1, 4)),
    (SRUN, Launch(2, 4, 2, 4)),
    (SRUN_NODES, Launch(3, 7, 1, 2)),
    # a batch script's own shell has the job's variables but is no task of a step
    ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, Launch()),
    (OPEN_MPI, Launch(3, 4, 1, 2)),
    (MPICH, Launch(3, 4, 1, 2)),
    # inside a Slurm job mpirun starts its helpers by srun, one per machine
    ({**OPEN_MPI, **SRUN}, Launch(3, 4, 1, 2)),
    ({**MPICH, **SRUN}, Launch(3, 4, 1, 2)),
    # srun --mpi=pmi2 and --mpi=pmix
    ({**SRUN, "PMI_RANK": "2", "PMI_SIZE": "4"}, Launch(2, 4, 2, 4)),
    ({**SRUN, "PMIX_RANK": "2"}, Launch(2, 4, 2, 4)),
    ({"SLURM_STEP_NUM_TASKS": "1", "PMIX_RANK": "0"}, Launch()),
    # mpirun or srun starts torchrun's agents
    ({**OPEN_MPI, **TORCHRUN, "TORCHELASTIC_RUN_ID": "x"}, Launch(5, 8, 1, 8)),
    ({**SRUN, **TORCHRUN}, Launch(5, 8, 1, 8)),
])  # fmt: skip
def test_who_am_i(environ, launch):
    assert read_launch(environ) == launch


def test_torch_distributed_launch_passes_the_local_rank():
    environ = {name: value for name, value in TORCHRUN.items() if name != "LOCAL_RANK"}
    assert read_launch(environ, local_rank=3) == Launch(5, 8, 3, 8)
    with pytest.raises(ConfigError, match="LOCAL_RANK"):
        read_launch(environ)


@pytest.mark.parametrize("environ, part", [
    ({**TORCHRUN, "RANK": "a"}, "'a'"),
    ({**TORCHRUN, "RANK": "8"}, "RANK is 8 of WORLD_SIZE 8"),
    ({**TORCHRUN, "WORLD_SIZE": "-1"}, "RANK is 5"),
    ({**TORCHRUN, "MASTER_PORT": "x"}, "'x'"),
    ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "MASTER_ADDR"),
    ({**SRUN_NODES, "SLURM_STEP_TASKS_PER_NODE": "two"}, "two"),
    ({**SRUN_NODES, "SLURM_NODEID": "4"}, "launcher's environment"),
    ({"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "3"}, "OMPI_COMM_WORLD_LOCAL_RANK"),
    # each process would take itself for the only one
    ({"PMI_RANK": "1", "PMI_SIZE": "4"}, "MPI_LOCALRANKID"),
    ({"PMIX_RANK": "0"}, "does not say of how many"),
    ({**OPEN_MPI, "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}, "WORLD_SIZE is 1, and mpirun says 4 processes"),
])  # fmt: skip
def test_what_cannot_be_used_is_refused(environ, part):
    with pytest.raises(ConfigError) as caught:
        read_launch(environ)
    assert part in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("environ, rank", [({}, "0"), (TORCHRUN, "5"), (OPEN_MPI, "3"), (MPICH, "3"), (SRUN, "2"), ({**OPEN_MPI, **SRUN}, "3")])  # fmt: skip
def test_an_error_is_said_by_the_rank_that_the_launcher_gave(environ, rank):
    assert stated_rank(environ) == rank


@pytest.mark.parametrize("nodes, host", [
    ("node1", "node1"), ("node[01-03,7]", "node01"), ("node[7,01-03],login", "node7"), ("a,b[1-2]", "a"),
    ("rack[0-1]n[03-05,7]-ib,login", "rack0n03-ib"), ("n[9-11].cluster.org", "n9.cluster.org"), ("127.0.0.[1-2]", "127.0.0.1"),
])  # fmt: skip
def test_the_first_machine_of_a_step(nodes, host):
    assert first_host(nodes) == host
    environ = {**SRUN_NODES, "SLURM_STEP_NODELIST": nodes, "SLURM_NODELIST": "others[1-9]"}
    assert meeting_place(read_launch(environ), environ)["MASTER_ADDR"] == host


@pytest.mark.parametrize("nodes", ["", "node[01-03", "node]1", "[", ",node1", "a b"])
def test_a_list_of_machines_that_is_none(nodes):
    with pytest.raises(ConfigError, match="MASTER_ADDR"):
        first_host(nodes)


def test_tasks_of_the_machines():
    assert tasks_of_nodes("2(x3),1") == [2, 2, 2, 1] and tasks_of_nodes("4") == [4]


def test_where_the_processes_meet():
    def place(environ):
        return meeting_place(read_launch(environ), environ)

    assert place(TORCHRUN) == {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    assert place({**SRUN_NODES, "MASTER_ADDR": "a", "MASTER_PORT": "1"}) == {"MASTER_ADDR": "a", "MASTER_PORT": "1"}
    assert place(SRUN)["MASTER_ADDR"] == "127.0.0.1"
    with pytest.raises(ConfigError, match="MASTER_ADDR: not set, and mpirun spans several machines"):
        place(OPEN_MPI)
    with pytest.raises(ConfigError, match="MASTER_ADDR: not set, and with --distribution=arbitrary"):
        place({**SRUN_NODES, "SLURM_DISTRIBUTION": "arbitrary"})
    with pytest.raises(ConfigError, match="SLURM_STEP_NODELIST is not there"):
        place({name: value for name, value in SRUN_NODES.items() if name != "SLURM_STEP_NODELIST"})


def test_two_steps_of_a_job_meet_at_two_ports_none_of_which_is_taken_by_others():
    steps = [{**SRUN, "SLURM_JOB_ID": "123456", "SLURM_STEP_ID": str(step)} for step in range(300)]
    jobs = [{**SRUN, "SLURM_JOB_ID": str(job)} for job in range(300)]
    for environs in (steps, jobs):
        ports = [int(meeting_place(Launch(0, 4, 0, 4), environ)["MASTER_PORT"]) for environ in environs]
        assert len(set(ports)) == 300
        assert all(1024 < port < 32768 for port in ports)  # Linux's range of outgoing connections begins there
    runs = [{**OPEN_MPI, "OMPI_MCA_ess_base_jobid": str(65536 * run + 1)} for run in (3, 4)]
    first, second = (int(meeting_place(Launch(0, 4, 0, 4), run)["MASTER_PORT"]) for run in runs)
    assert first != second and max(first, second) < 32768


@pytest.mark.parametrize("visible", ["2", "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6", "MIG-GPU-8932f937-d72c/1/2"])
def test_a_task_that_sees_one_gpu_takes_that(monkeypatch, visible):
    """`--gpus-per-task=1`: local rank 3 has no fourth GPU to look for."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    three = {"SLURM_PROCID": "3", "SLURM_LOCALID": "3"}
    wrapped = {**TORCHRUN, "LOCAL_RANK": "3"}  # a script that sets RANK from srun's variables
    for environ in ({**SRUN, **three}, {**OPEN_MPI, "OMPI_COMM_WORLD_LOCAL_RANK": "3"}, {**MPICH, "MPI_LOCALRANKID": "3"}, wrapped):  # fmt: skip
        launch = read_launch({**environ, "CUDA_VISIBLE_DEVICES": visible})
        assert launch.local_rank == 3  # downloads once per machine ask for it
        assert select_device("auto", launch.gpu) == torch.device("cuda", 0)
    # torchrun shows all its processes the same GPUs
    launch = read_launch({**wrapped, "TORCHELASTIC_RUN_ID": "x", "CUDA_VISIBLE_DEVICES": visible})
    with pytest.raises(ConfigError, match="local rank 3 has no GPU"):
        select_device("auto", launch.gpu)
    assert read_launch({**SRUN, **three, "CUDA_VISIBLE_DEVICES": "0,1,2,3"}).gpu == 3


# Runs, by the variables alone


def of_srun(rank: int, job: int) -> dict[str, str]:
    return {
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(rank),
        "SLURM_JOB_ID": str(job),
    }


def of_srun_on_two_machines(rank: int, job: int) -> dict[str, str]:
    return {
        **of_srun(rank, job), "SLURM_LOCALID": "0", "SLURM_NODEID": str(rank), "SLURM_STEP_NUM_NODES": "2",
        "SLURM_STEP_TASKS_PER_NODE": "1(x2)", "SLURM_STEP_NODELIST": "127.0.0.[1-2]", "SLURM_STEP_ID": "1",
    }  # fmt: skip


def of_open_mpi(rank: int, job: int) -> dict[str, str]:
    values = {"RANK": rank, "SIZE": 2, "LOCAL_RANK": rank, "LOCAL_SIZE": 2}
    variables = {f"OMPI_COMM_WORLD_{name}": str(value) for name, value in values.items()}
    return {**variables, "OMPI_MCA_ess_base_jobid": str(job)}


def of_mpich(rank: int, job: int) -> dict[str, str]:
    return {"PMI_RANK": str(rank), "PMI_SIZE": "2", "MPI_LOCALRANKID": str(rank), "MPI_LOCALNRANKS": "2", "MASTER_PORT": str(20000 + job % 9000)}  # fmt: skip


@pytest.mark.parametrize("variables", [of_srun, of_srun_on_two_machines, of_open_mpi, of_mpich])
def test_two_processes_train_by_each_launcher_s_variables(write_config, tmp_path, variables):
    path = write_config(TRAIN={"EPOCHS": 1, "WARMUP_EPOCHS": 0}, DATA={"BATCH_SIZE": 4})
    jobs = [Job("--cfg", path, environment=variables(rank, os.getpid())) for rank in range(2)]
    assert [job.wait() for job in jobs] == [[0], [0]], jobs[0].text() + jobs[1].text()
    assert "| 2 processes |" in jobs[0].text() and jobs[1].text() == ""


# Runs, by the launchers themselves


def trained_by(launcher: list, path: Path, **environment: str) -> None:
    argv = [*launcher, sys.executable, "main.py", "--cfg", str(path)]
    ended = subprocess.run(argv, cwd=ROOT, env={**CLEAN, **environment}, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout.count("| 2 processes |") == 1, ended.stdout


def small(write_config) -> Path:
    return write_config(TRAIN={"EPOCHS": 1, "WARMUP_EPOCHS": 0}, DATA={"BATCH_SIZE": 4})


@pytest.mark.parametrize("name, flags, environment", [
    ("mpirun.openmpi", ["--oversubscribe"], {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}),
    ("mpirun.mpich", [], {}),
])  # fmt: skip
def test_mpirun(write_config, name, flags, environment):
    if not shutil.which(name):
        pytest.skip(f"{name} is not installed (apt-get install openmpi-bin mpich)")
    port = {} if "openmpi" in name else {"MASTER_PORT": str(free_port())}
    trained_by([name, *flags, "-n", "2"], small(write_config), **environment, **port)


def test_srun_over_two_nodes(write_config, tmp_path):
    with slurm(tmp_path) as environment:
        trained_by(["srun", "-N2", "-n2"], small(write_config), SLURM_CONF=environment["SLURM_CONF"])
