"""The processes of a run: how they are started, what they say to one another, and what becomes of them when one is lost.

What others do already is left to them:

- torchrun's agent notices a worker that ends, ends the rest, starts all again (`--max_restarts`), and lets machines come
  and go. `restarts.py` only tells it which ends no restart mends.
- NCCL and gloo end a collective operation that lasts longer than `group.COLLECTIVE_TIMEOUT`.

What they lack is here:

- `launch.py`, `slurm.py`: which process this is, whoever has started it (torchrun, srun, mpirun, nobody), and where all
  meet. srun and mpirun have no agent and no store.
- `group.py`, `meeting.py`, `interface.py`: all meet, also in a store that an agent keeps from one start to the next, and
  over a network interface that leads to the others. `backend_errors.py` keeps what NCCL and gloo say when they cannot.
- `exchange.py`: what the processes agree on between two steps, so that all stop at the same one.
- `watch.py`: signs of life, from which the process that is gone, stopped or behind is *named*. An agent only knows that a
  worker on its own machine has ended, and NCCL only that an operation took too long. With srun and mpirun nobody else
  ends the processes that are left.
- `sameness.py`: all have the same config, code and versions. `machines.py`: where they are, and whether their clocks agree.
- `collectives.py`: sums and rows of tensors over all processes.

`peers.py` is what the rest of the program sees of all this.
"""
