"""The public names of slm. Made by docs/generate.py; do not edit."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

from slm._version import __version__ as __version__
from slm.answering import Classification as Classification
from slm.config import DataConfig as DataConfig, ModelConfig as ModelConfig, RunOptions as RunOptions, TrainConfig as TrainConfig, UserError as UserError
from slm.data.dataset import TextDataset as TextDataset
from slm.data.prepare import prepare as prepare
from slm.data.tokenizer import Tokenizer as Tokenizer, make_tokenizer as make_tokenizer
from slm.evaluation import compare as compare, evaluate as evaluate
from slm.looking import explain as explain
from slm.metrics.explain import Explanation as Explanation
from slm.metrics.scoring import Comparison as Comparison, Evaluation as Evaluation
from slm.metrics.summary import Summary as Summary, summary as summary
from slm.metrics.task_evaluation import TaskEvaluation as TaskEvaluation
from slm.model.beam import beam_search as beam_search
from slm.model.classifier import Classifier as Classifier
from slm.model.generation import generate_tokens as generate_tokens, stream_tokens as stream_tokens
from slm.model.kv_cache import KVCache as KVCache
from slm.model.lora import add_lora as add_lora, merge_lora as merge_lora
from slm.model.loss import WithLoss as WithLoss, next_token_loss as next_token_loss
from slm.model.transformer import LanguageModel as LanguageModel
from slm.reporting import plot as plot
from slm.run import Run as Run, load as load
from slm.sampling import Sampling as Sampling
from slm.task_config import TaskConfig as TaskConfig
from slm.training.loop import History as History, train_and_evaluate as train_and_evaluate
from slm.verify import verify_resume as verify_resume
from slm.writing import Sample as Sample, samples as samples, stream as stream
from slm.training.loop import Record

def train(
    data: str | os.PathLike[str] | Iterable[str] | Iterable[int] | Sequence[os.PathLike[str]] | Iterable[tuple[object, object]] | Iterable[Mapping[str, object]] | None = None,
    *,
    on_log: Callable[[Record], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    val_data: str | os.PathLike[str] | Iterable[str] | Iterable[int] | Sequence[os.PathLike[str]] | Iterable[tuple[object, object]] | Iterable[Mapping[str, object]] | None = None,
    val_fraction: float = 0.1,
    text_field: str = "text",
    split_documents_on: str | None = None,
    tokenizer: str | os.PathLike[str] = "bpe",
    val_tokens: int = 1000000,
    mask_documents: bool = False,
    task: Literal["language_model", "pairs", "classification"] = "language_model",
    init_from: str | os.PathLike[str] | None = None,
    also_evaluate: str | os.PathLike[str] | Sequence[str] | Sequence[os.PathLike[str]] | None = None,
    trainable: Literal["all", "head", "lora"] = "all",
    lora_rank: int = 8,
    source_field: str = "source",
    target_field: str = "target",
    target_file: str | os.PathLike[str] | Sequence[str] | Sequence[os.PathLike[str]] | None = None,
    num_beams: int = 4,
    length_penalty: float = 1.0,
    label_field: str = "label",
    class_weights: Literal["none", "balanced"] = "none",
    token_dropout: float = 0.2,
    vocab_size: int = 10000,
    embed_dim: int = 128,
    num_heads: int = 4,
    num_layers: int = 2,
    hidden_dim: int = 512,
    max_seq_len: int = 128,
    dropout: float = 0.0,
    bias: bool = True,
    tie_embeddings: bool = False,
    positions: Literal["learned", "rope"] = "learned",
    norm: Literal["layernorm", "rmsnorm"] = "layernorm",
    mlp: Literal["gelu", "relu2", "swiglu"] = "gelu",
    num_kv_heads: int | None = None,
    qk_norm: bool = False,
    embedding_norm: bool = False,
    zero_init: bool = False,
    rope_base: float = 10000.0,
    norm_eps: float = 1e-05,
    document_start: int | None = None,
    batch_size: int = 32,
    micro_batch_size: int | None = None,
    learning_rate: float = 0.001,
    epochs: int = 5,
    max_steps: int | None = None,
    max_minutes: float | None = None,
    seed: int = 42,
    recipe: Literal["classic", "modern"] = "classic",
    optimizer: Literal["adamw", "muon"] = "adamw",
    schedule: Literal["linear", "cosine", "wsd", "constant"] = "linear",
    decay_steps: int | None = None,
    warmup_steps: int | None = None,
    min_learning_rate: float = 0.0,
    weight_decay: float = 0.1,
    beta1: float = 0.9,
    beta2: float = 0.99,
    max_grad_norm: float = 1.0,
    patience: int | None = None,
    eval_every: int | None = None,
    log_every: int = 10,
    sample_every: int | None = None,
    device: str = "auto",
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto",
    threads: int | None = None,
    compile: Literal["auto", "on", "off"] = "auto",
    model_dir: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    resume: Literal["auto", "never", "must"] = "auto",
    save_every: int | None = None,
    keep_last: int = 2,
    config: str | os.PathLike[str] | None = None,
    repeat: str | os.PathLike[str] | None = None,
    recheck: bool = False,
    plan_only: bool = False,
    quiet: bool = False,
) -> Run: ...
