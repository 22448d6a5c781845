"""What scripts/plan_run.py computes: how the speed of one GPU becomes that of many, on paper."""
