"""Settings that go together: recipes, and what the built-in corpora bring along."""

from __future__ import annotations

from typing import Any

# Settings that go together, below what a corpus brings along; docs/speed.md has what each is worth.
RECIPES: dict[str, dict[str, Any]] = {
    "classic": {},
    "modern": {
        "bias": False,
        "positions": "rope",
        "qk_norm": True,
        "embedding_norm": True,
        "zero_init": True,
        "optimizer": "muon",
        "learning_rate": 1e-2,
        "warmup_steps": 0,
    },
}

# Settings that a built-in corpus brings along, below everything that anybody sets.
PRESETS: dict[str, dict[str, Any]] = {
    "stories": {  # under two minutes on two CPU cores: benchmarks/stories.py
        "val_fraction": 0.01,
        "vocab_size": 2048,
        "max_seq_len": 160,
        "positions": "rope",
        "batch_size": 8,
        "learning_rate": 3e-3,
        "epochs": 1,
    },
}

# The same for a task, and for a task on a built-in corpus, above the recipe "modern".
TASK_PRESETS: dict[str, dict[str, Any]] = {
    "pairs": {  # 29,000 captions in some minutes on two CPU cores: benchmarks/translation.py
        "vocab_size": 4096,
        "embed_dim": 256,
        "num_layers": 4,
        "hidden_dim": 1024,
        "tie_embeddings": True,
        "dropout": 0.1,
        "weight_decay": 0.1,
        "batch_size": 64,
    },
    "classification": {  # a few thousand texts in a minute on two CPU cores: benchmarks/spam.py
        "vocab_size": 4096,
        "embed_dim": 64,
        "hidden_dim": 256,
        "tie_embeddings": False,  # there is no output layer to share a table with
        "dropout": 0.2,
        "learning_rate": 3e-3,
    },
    "stories pairs": {
        "vocab_size": 1024,
        "embed_dim": 128,
        "num_layers": 3,
        "hidden_dim": 512,
        "dropout": 0.0,
        "epochs": 4,
    },
    "stories classification": {"learning_rate": 1e-2, "dropout": 0.0, "token_dropout": 0.1, "epochs": 8},
}
