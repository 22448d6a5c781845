"""What computes a trained model's logits: torch, also in CUDA graphs, or another engine on the model's exported deployed form."""

from .choice import describe, is_deployed, open_engine, require_engine
from .inference_engine import ENGINES, EXPORTING, InferenceEngine

__all__ = ["ENGINES", "EXPORTING", "InferenceEngine", "describe", "is_deployed", "open_engine", "require_engine"]
