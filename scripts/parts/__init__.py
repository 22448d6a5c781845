"""What the scripts consist of that are more than a file: a folder each, named as its script."""
