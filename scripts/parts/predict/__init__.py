"""How scripts/predict.py predicts, what it reads besides images, and what it writes."""
