"""A training run: its parts and the loop over them."""
