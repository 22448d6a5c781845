"""Evaluation sets: ImageNet's further ones and users' own."""
