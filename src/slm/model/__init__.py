"""The Transformer, its loss and its generation; knows no training."""

from slm.config import IGNORE_INDEX, ModelConfig
from slm.model.beam import Hypothesis, beam_search
from slm.model.choice import choose_tokens
from slm.model.classifier import Classifier
from slm.model.generation import generate_tokens, stream_tokens
from slm.model.kv_cache import KVCache
from slm.model.lora import add_lora, merge_lora
from slm.model.loss import WithLoss, next_token_loss
from slm.model.transformer import LanguageModel

__all__ = [
    "IGNORE_INDEX",
    "Classifier",
    "Hypothesis",
    "KVCache",
    "LanguageModel",
    "ModelConfig",
    "WithLoss",
    "add_lora",
    "beam_search",
    "choose_tokens",
    "generate_tokens",
    "merge_lora",
    "next_token_loss",
    "stream_tokens",
]
