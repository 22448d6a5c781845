"""Data sets made, and checked: what writes a format, for its reader in `data.sources`.

archives: zip and tar. shards: WebDataset. parquet: Hugging Face. imagenet, devkit: folders of ImageNet's own archives.
read, verify: whether what is there is whole. scripts/prepare_data.py is the command.
"""
