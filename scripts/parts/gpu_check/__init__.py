"""What a GPU has to show: one file per stage, each with `checks(setting)`, which yields a `Check` after the other.

A stage runs in a process of its own, so that what it breaks (a CUDA error ends a process' use of the GPU) stays there. On
a CPU (`--dry-run`) each stage does the same with a small model, with stand-ins for what only a GPU has. A new stage is a
new file and a line in `STAGES` of gpu_check.py.
"""
