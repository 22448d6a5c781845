"""The parts of prepare_data.py: one format a file."""
