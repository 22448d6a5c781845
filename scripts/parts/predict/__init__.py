"""What scripts/predict.py writes."""
