"""Training, evaluation and their parts."""
