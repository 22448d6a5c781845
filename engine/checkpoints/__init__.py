"""Checkpoint files: read in one way whoever wrote them (`file`), loaded into a model (`load`), written by a run
(`store`), with the parts of a state that is spread over the processes (`parts`)."""
