"""Every setting: its name, default, rule and help, each written once.

Five frozen dataclasses, one of them in `task_config.py`, share one flat set of names. Command-line flags, `--help`,
`config.toml`, the keywords of `slm.train` and the table of flags in the docs are all made from these fields.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from slm.fields import RULES as RULES
from slm.fields import Checked, setting
from slm.fields import UserError as UserError
from slm.fields import kind_of as kind_of
from slm.recipes import PRESETS as PRESETS
from slm.recipes import RECIPES as RECIPES
from slm.task_config import TaskConfig as TaskConfig

IGNORE_INDEX = -100  # a target that counts neither in the loss nor in the accuracy


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Checked):
    """What a model is: changing any of it would break or alter a trained model. Stored in every checkpoint."""

    vocab_size: int = setting(
        10000,
        "Size of the vocabulary. With --data it is an upper bound: the model gets what the tokenizer has.",
        group="model",
        rule="at least 2",
        everyday=True,
    )
    embed_dim: int = setting(
        128, "Width of the model: numbers per token.", group="model", rule="at least 1", everyday=True
    )
    num_heads: int = setting(
        4,
        "Attention heads in each layer; embed_dim must be a multiple.",
        group="model",
        rule="at least 1",
        everyday=True,
    )
    num_layers: int = setting(2, "Transformer layers.", group="model", rule="at least 1", everyday=True)
    hidden_dim: int = setting(
        512, "Inner width of each feed-forward network.", group="model", rule="at least 1", everyday=True
    )
    max_seq_len: int = setting(
        128,
        "Tokens the model can look at, and the length of a window.",
        group="model",
        rule="at least 1",
        everyday=True,
    )
    dropout: float = setting(
        0.0,
        "Share of activations dropped while training; try 0.1-0.2 when a small text is learned by heart.",
        group="model",
        rule="at least 0 and below 1",
        everyday=True,
    )
    bias: bool = setting(True, "Bias terms in linear layers and layer norms.", group="model")
    tie_embeddings: bool = setting(
        False, "Use the token embedding as output layer too: fewer parameters.", group="model"
    )
    positions: str = setting(
        "learned",
        "How the model knows the order: a learned vector per position, or rotation of queries and keys.",
        group="model",
        choices=("learned", "rope"),
    )
    norm: str = setting("layernorm", "Normalisation layer.", group="model", choices=("layernorm", "rmsnorm"))
    mlp: str = setting("gelu", "Feed-forward network.", group="model", choices=("gelu", "relu2", "swiglu"))
    num_kv_heads: int | None = setting(
        None,
        "Key and value heads, shared by groups of query heads; default: num_heads.",
        group="model",
        rule="at least 1",
    )
    qk_norm: bool = setting(False, "Normalise each head's queries and keys.", group="model")
    embedding_norm: bool = setting(False, "Normalise the embeddings before the first layer.", group="model")
    zero_init: bool = setting(
        False,
        "Start the last matrix of each branch at zero, so that at first every layer passes on what it gets.",
        group="model",
    )
    rope_base: float = setting(
        10000.0, "Base of the rotation angles, for positions = rope.", group="model", rule="above 0"
    )
    norm_eps: float = setting(1e-5, "Added to the variance inside each norm.", group="model", rule="above 0")
    document_start: int | None = setting(
        None,
        "Token id that begins a document; attention never looks back beyond it. --mask_documents sets it.",
        group="model",
        rule="0 or above",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.embed_dim % self.num_heads:
            below = self.embed_dim - self.embed_dim % self.num_heads
            near = [str(width) for width in (below, below + self.num_heads) if width]
            raise UserError(
                f"embed_dim = {self.embed_dim} is not a multiple of num_heads = {self.num_heads}: every head gets "
                f"an equal share. Try embed_dim = {' or '.join(near)}."
            )
        if self.num_heads % self.kv_heads:
            raise UserError(
                f"num_heads = {self.num_heads} is not a multiple of num_kv_heads = {self.kv_heads}: every key head "
                "serves an equal number of query heads."
            )
        if self.positions == "rope" and self.head_dim % 2:
            raise UserError(
                f"positions = 'rope' rotates pairs of numbers, but head_dim = embed_dim / num_heads = "
                f"{self.head_dim} is odd. Choose another embed_dim or num_heads, or positions = 'learned'."
            )
        if self.document_start is not None and self.document_start >= self.vocab_size:
            raise UserError(
                f"document_start = {self.document_start}: must be below vocab_size = {self.vocab_size}, or None for "
                "attention across documents."
            )

    @property
    def head_dim(self) -> int:
        """d: numbers per head."""
        return self.embed_dim // self.num_heads

    @property
    def kv_heads(self) -> int:
        """K: key and value heads, num_heads unless num_kv_heads says otherwise."""
        return self.num_heads if self.num_kv_heads is None else self.num_kv_heads

    @property
    def num_parameters(self) -> int:
        """Trainable numbers in a LanguageModel of this configuration, in closed form."""
        width, bias = self.embed_dim, int(self.bias)

        def linear(inputs: int, outputs: int) -> int:
            return inputs * outputs + bias * outputs

        def norm(size: int) -> int:
            return size * (1 + bias) if self.norm == "layernorm" else size

        attention = 2 * linear(width, width) + 2 * linear(width, self.kv_heads * self.head_dim)
        attention += 2 * norm(self.head_dim) * int(self.qk_norm)
        num_up = 2 if self.mlp == "swiglu" else 1
        mlp = num_up * linear(width, self.hidden_dim) + linear(self.hidden_dim, width)
        embeddings = self.vocab_size * width * (1 if self.tie_embeddings else 2)
        positions = self.max_seq_len * width if self.positions == "learned" else 0
        norms = 1 + int(self.embedding_norm) + 2 * self.num_layers
        return embeddings + positions + self.num_layers * (attention + mlp) + norms * norm(width)


@dataclass(frozen=True, kw_only=True)
class DataConfig(Checked):
    """The text and how it becomes tokens."""

    data: tuple[str, ...] | None = setting(
        None,
        "What to learn: files, folders, globs or URLs (gs://, s3://, hf://, https://), or the built-in 'stories', "
        "'python' or 'dummy' (random tokens, the default).",
        group="data",
        everyday=True,
    )
    val_data: tuple[str, ...] | None = setting(
        None, "What to validate on, in the forms of --data, instead of a part of it.", group="data"
    )
    val_fraction: float = setting(
        0.1,
        "Share of the text kept for validation: whole documents where there are 100 or more, else its end.",
        group="data",
        rule="above 0 and below 1",
    )
    text_field: str = setting(
        "text",
        "Field of the text in .jsonl, .csv, .tsv and .parquet. A number: there is no header, columns count from 0.",
        group="data",
        everyday=True,
    )
    split_documents_on: str | None = setting(
        None,
        "Text between two documents of a plain text file, such as '\\n\\n'. Default: a file is one document.",
        group="data",
    )
    tokenizer: str = setting(
        "bpe",
        "How text becomes tokens: 'bpe' (learned pieces of words), 'char', 'byte', or a tokenizer.json: its path, "
        "URL or folder.",
        group="data",
        everyday=True,
    )
    val_tokens: int = setting(
        1_000_000, "Validation tokens that each evaluation reads; a million at most.", group="data", rule="at least 1"
    )
    mask_documents: bool = setting(
        False, "Keep attention inside a document: what stands before its beginning is not seen.", group="data"
    )


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Checked):
    """How the model learns."""

    batch_size: int = setting(32, "Windows per step.", group="training", rule="at least 1", everyday=True)
    micro_batch_size: int | None = setting(
        None,
        "Windows per forward and backward; smaller needs less memory and gives the same result. Default: batch_size.",
        group="training",
        rule="at least 1",
    )
    learning_rate: float = setting(1e-3, "Peak learning rate.", group="training", rule="above 0", everyday=True)
    epochs: int = setting(5, "Passes over the training text.", group="training", rule="at least 1", everyday=True)
    max_steps: int | None = setting(
        None,
        "End the run at this step, whatever the epochs: fewer or more.",
        group="training",
        rule="at least 1",
        everyday=True,
    )
    max_minutes: float | None = setting(
        None,
        "Train for so long, at least 0.5, with --recipe modern: what you do not set (sizes, vocabulary, batch, "
        "learning rate, dropout, steps) is chosen for the best model that this machine can make of the text in this "
        "time.",
        group="training",
        rule="above 0 and at most 1440",
        everyday=True,
    )
    seed: int = setting(
        42, "Seed of weights, data order and dropout.", group="training", rule="0 or above", everyday=True
    )
    recipe: str = setting(
        "classic",
        "Settings that go together: classic keeps the layout of the original; modern learns more in the same time.",
        group="training",
        choices=("classic", "modern"),
        everyday=True,
    )
    optimizer: str = setting(
        "adamw",
        "AdamW, or Muon for the matrices of hidden layers and AdamW for the rest.",
        group="optimizer",
        choices=("adamw", "muon"),
    )
    schedule: str = setting(
        "linear",
        "How the learning rate falls from its peak to min_learning_rate after the warm-up; wsd (warm-up, stable, "
        "decay) stays at the peak until the last decay_steps.",
        group="optimizer",
        choices=("linear", "cosine", "wsd", "constant"),
    )
    decay_steps: int | None = setting(
        None,
        "Steps of the linear fall at the end, for schedule = wsd. Default: half of all steps.",
        group="optimizer",
        rule="at least 1",
    )
    warmup_steps: int | None = setting(
        None,
        "Steps in which the learning rate rises to its peak. Default: 100, or 5 % of the steps if that is less.",
        group="optimizer",
        rule="0 or above",
    )
    min_learning_rate: float = setting(
        0.0,
        "What the learning rate falls to at the end; no effect with the constant schedule.",
        group="optimizer",
        rule="0 or above",
    )
    weight_decay: float = setting(0.1, "Weight decay, on matrices only.", group="optimizer", rule="0 or above")
    beta1: float = setting(0.9, "AdamW's decay of the mean gradient.", group="optimizer", rule="at least 0 and below 1")
    beta2: float = setting(
        0.99, "AdamW's decay of the mean squared gradient.", group="optimizer", rule="at least 0 and below 1"
    )
    max_grad_norm: float = setting(
        1.0,
        "Gradients longer than this are scaled down to it; 0 turns that off.",
        group="optimizer",
        rule="0 or above",
    )
    patience: int | None = setting(
        None,
        "End the run after so many evaluations in a row without a better val_loss; not with max_minutes. Default: "
        "never.",
        group="training",
        rule="at least 1",
    )
    eval_every: int | None = setting(
        None,
        "Steps between evaluations, beside one at each epoch's end (none with max_minutes). Default: about 20 in a "
        "run, or fewer where they would be more than half as much work as the training (6 % with max_minutes).",
        group="output",
        rule="at least 1",
    )
    log_every: int = setting(10, "Steps between entries in metrics.jsonl.", group="output", rule="at least 1")
    sample_every: int | None = setting(
        None,
        "Evaluations between samples of what the model writes after fixed prompts, 0 for none. Default: at the first, "
        "and at each later one while samples have taken less than 1 % of the training's time; none with --quiet.",
        group="output",
        rule="0 or above",
    )
    device: str = setting("auto", "Where to compute: auto, cpu, cuda, cuda:1, mps.", group="machine", everyday=True)
    precision: str = setting(
        "auto",
        "Number format of matrix products; auto takes bf16 where the hardware is fast at it.",
        group="machine",
        choices=("auto", "fp32", "bf16", "fp16"),
    )
    threads: int | None = setting(
        None,
        "CPU threads; auto times some steps with each number and takes the fastest.",
        group="machine",
        rule="1 to 1024",
        word="auto",
    )
    compile: str = setting(
        "auto",
        "Whether torch.compile makes the steps faster, at the price of a minute or more before the first; auto does "
        "so on a GPU in long runs.",
        group="machine",
        choices=("auto", "on", "off"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.min_learning_rate > self.learning_rate:
            raise UserError(
                f"min_learning_rate = {self.min_learning_rate} is above learning_rate = {self.learning_rate}, "
                "the peak. Lower the one or raise the other."
            )


@dataclass(frozen=True, kw_only=True)
class RunOptions(Checked):
    """What concerns this invocation only; never stored in a run's config.toml."""

    model_dir: str | None = setting(
        ".",
        "Folder of the run, local or URL (gs://bucket/run); the model is saved there as model.pt.",
        group="output",
        everyday=True,
    )
    overwrite: bool = setting(
        False,
        "Move the run that model_dir already holds aside, to previous-1 in it, and start anew.",
        group="output",
        everyday=True,
    )
    resume: str = setting(
        "auto",
        "Whether to go on with an unfinished run in model_dir: auto does so with the same settings, must refuses to "
        "start anew, never refuses to go on.",
        group="output",
        choices=("auto", "never", "must"),
        everyday=True,
    )
    save_every: int | None = setting(
        None, "Steps between checkpoints. Default: one every 3 minutes.", group="output", rule="at least 1"
    )
    keep_last: int = setting(2, "Checkpoints to keep, the newest.", group="output", rule="at least 1")
    config: str | None = setting(
        None,
        "TOML file of settings, such as a run's config.toml; flags win over it.",
        group="output",
    )
    repeat: str | None = setting(
        None, "Folder of a run to replay exactly, with every choice that it made.", group="output"
    )
    recheck: bool = setting(
        False,
        "Read all the data again and compare it with what is prepared; else sizes and dates tell.",
        group="output",
    )
    plan_only: bool = setting(False, "Print what a new run would do, and why, and stop.", group="output", everyday=True)
    quiet: bool = setting(False, "Print only warnings and errors.", group="output", everyday=True)


CONFIGS: tuple[type[Checked], ...] = (DataConfig, TaskConfig, ModelConfig, TrainConfig, RunOptions)
FIELDS: dict[str, dataclasses.Field[Any]] = {
    field.name: field for config in CONFIGS for field in dataclasses.fields(config)
}
