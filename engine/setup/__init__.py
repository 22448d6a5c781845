"""What training, evaluation and inference make of a config: the model on its device, precision, the preprocessing of images."""
