"""What scripts/benchmark.py times, how, and what it makes of the seconds."""
