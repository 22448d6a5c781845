"""The targets of reproduce.py, one a file, and what they share."""
