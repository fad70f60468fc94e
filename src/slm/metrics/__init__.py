"""How good a model is, in numbers."""

from slm.metrics.evaluate import evaluate

__all__ = ["evaluate"]
