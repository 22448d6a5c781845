"""What `make_segmentation_data.py` and its like are made of."""
