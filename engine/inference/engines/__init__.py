"""What computes a trained model's logits: torch, or another engine on the model's exported deployed form."""

from .choice import describe, is_deployed, open_engine, require_engine
from .inference_engine import ENGINES, InferenceEngine

__all__ = ["ENGINES", "InferenceEngine", "describe", "is_deployed", "open_engine", "require_engine"]
