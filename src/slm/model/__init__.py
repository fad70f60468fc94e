"""The Transformer, its loss and its generation; knows no training."""

from slm.config import IGNORE_INDEX, ModelConfig
from slm.model.generation import choose_next_token, stream_tokens
from slm.model.kv_cache import KVCache
from slm.model.loss import WithLoss, next_token_loss
from slm.model.transformer import LanguageModel

__all__ = [
    "IGNORE_INDEX",
    "KVCache",
    "LanguageModel",
    "ModelConfig",
    "WithLoss",
    "choose_next_token",
    "next_token_loss",
    "stream_tokens",
]
