"""Train small language models from scratch on your own text.

Importing this package loads no torch and sets nothing; each public name loads its module when first used.
"""

from slm._version import __version__ as __version__

# The public names and where they live; `__init__.pyi` tells the same to editors and type checkers.
_HOMES = {
    "DataConfig": "slm.config",
    "ModelConfig": "slm.config",
    "RunOptions": "slm.config",
    "TrainConfig": "slm.config",
    "UserError": "slm.config",
    "TaskConfig": "slm.task_config",
    "LanguageModel": "slm.model.transformer",
    "Classifier": "slm.model.classifier",
    "add_lora": "slm.model.lora",
    "merge_lora": "slm.model.lora",
    "beam_search": "slm.model.beam",
    "KVCache": "slm.model.kv_cache",
    "WithLoss": "slm.model.loss",
    "Sampling": "slm.sampling",
    "generate_tokens": "slm.model.generation",
    "stream_tokens": "slm.model.generation",
    "next_token_loss": "slm.model.loss",
    "TextDataset": "slm.data.dataset",
    "prepare": "slm.data.prepare",
    "Tokenizer": "slm.data.tokenizer",
    "make_tokenizer": "slm.data.tokenizer",
    "History": "slm.training.loop",
    "train_and_evaluate": "slm.training.loop",
    "Evaluation": "slm.metrics.scoring",
    "Comparison": "slm.metrics.scoring",
    "Explanation": "slm.metrics.explain",
    "TaskEvaluation": "slm.metrics.task_evaluation",
    "Classification": "slm.answering",
    "Summary": "slm.metrics.summary",
    "summary": "slm.metrics.summary",
    "compare": "slm.evaluation",
    "evaluate": "slm.evaluation",
    "plot": "slm.reporting",
    "Run": "slm.run",
    "load": "slm.run",
    "train": "slm.run",
    "Sample": "slm.writing",
    "samples": "slm.writing",
    "stream": "slm.writing",
    "explain": "slm.looking",
    "verify_resume": "slm.verify",
}
_ROOMS = ("config", "data", "metrics", "model", "storage", "training")

__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str) -> object:
    """Loads the module of a public name when it is first used (PEP 562)."""
    from importlib import import_module

    if name in _HOMES:
        value = globals()[name] = getattr(import_module(_HOMES[name]), name)
        return value
    if name in _ROOMS:
        return import_module(f"slm.{name}")
    raise AttributeError(f"module 'slm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_ROOMS])
