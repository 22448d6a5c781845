"""What scripts/checkpoint.py does with checkpoint files, a subcommand a file."""
