"""A checkpoint in use: its model, its predictions."""
