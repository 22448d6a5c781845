"""From a model and images to figures."""
