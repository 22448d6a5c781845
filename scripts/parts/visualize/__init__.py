"""The pictures of scripts/visualize.py, a kind in each file, and what they share with the paper's figures."""
