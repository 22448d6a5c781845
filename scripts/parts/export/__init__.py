"""Forms in which a trained model leaves this project: one file per format, each with `export(job)`.

A format writes into a `job.staged()` folder, loads what it wrote anew, compares its logits of real images with the model's,
and only then do the files get their names. A new format is a new file and a line in `FORMATS` of export.py.
"""
