"""Checkpoint files: read in one way whoever wrote them (`file`), loaded into a model (`load`), written by a run (`store`)."""
