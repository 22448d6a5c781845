"""What main.py does: one command a file."""
