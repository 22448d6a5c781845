"""The names of what lies in a run's folder besides its checkpoints."""

RESULT = "result.json"  # in the folder of a finished run
MISTAKES = "mistakes.json"  # what the last evaluation showed besides figures
REPORT = "report.html"
