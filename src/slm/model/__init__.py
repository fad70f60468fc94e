"""The Transformer, its loss and its generation; knows no training."""

from slm.config import IGNORE_INDEX, ModelConfig
from slm.model.choice import choose_tokens
from slm.model.generation import generate_tokens, stream_tokens
from slm.model.kv_cache import KVCache
from slm.model.loss import WithLoss, next_token_loss
from slm.model.transformer import LanguageModel

__all__ = [
    "IGNORE_INDEX",
    "KVCache",
    "LanguageModel",
    "ModelConfig",
    "WithLoss",
    "choose_tokens",
    "generate_tokens",
    "next_token_loss",
    "stream_tokens",
]
