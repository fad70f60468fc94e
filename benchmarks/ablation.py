"""What each part of the modern recipe is worth, and what does not help: each change alone, in the same time.

    python benchmarks/ablation.py --data_dir DIR [--seeds 1 2 3 4 5] [--results ablation.jsonl] [--only NAME ...]
                                  [--steps 260] [--variants NAME ...]

Two corpora: 'python' (built in) in a BPE vocabulary of 2,048, and the English captions of Multi30k by characters (DIR
holds multi30k.train.en.gz), both read less than once; with --only sms and --steps 800 the messages of SMS spam (DIR
holds sms_spam.tsv), read seven times. 4 layers of 128, windows of 64, batches of 24, one thread, bf16 where the
machine has it; the learning rate is what --max_minutes would take for as many tokens. First the steps of all variants
are timed in turn; then each variant gets as many steps as fit into the seconds that the recipe takes for --steps of
them. The loss is that of the end, over 100,000 tokens of the validation split. AdamW gets a warm-up, which it needs,
and three learning rates. Tiny Shakespeare is not looked at here: it is the exam.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from common import Results, text_of, where

import slm
from slm.settings import layered
from slm.training.budget import learning_rate_for
from slm.training.device import Machine
from slm.training.optimizer import make_optimizer
from slm.training.step import train_step
from slm.training.tuning import Choice, choose, time_steps

SIZES = {"num_layers": 4, "embed_dim": 128, "num_heads": 4, "hidden_dim": 512, "max_seq_len": 64, "batch_size": 24}
# times_rate is a factor for the learning rate, and warmup_steps a share of the steps.
VARIANTS: dict[str, dict[str, Any]] = {
    "modern": {},
    "SwiGLU": {"mlp": "swiglu", "hidden_dim": 344},
    "ReLU^2": {"mlp": "relu2"},
    "warm-up of 5 %": {"warmup_steps": 0.05},
    "no zero-initialised projections": {"zero_init": False},
    "no QK-norm": {"qk_norm": False},
    "no norm of the embeddings": {"embedding_norm": False},
    "learned positions": {"positions": "learned"},
    "AdamW, 3e-3": {"optimizer": "adamw", "learning_rate": 3e-3, "warmup_steps": 0.05},
    "AdamW, 6e-3": {"optimizer": "adamw", "learning_rate": 6e-3, "warmup_steps": 0.05},
    "AdamW, 1.2e-2": {"optimizer": "adamw", "learning_rate": 1.2e-2, "warmup_steps": 0.05},
    "cosine": {"schedule": "cosine"},
    "warm-up, stable, decay": {"schedule": "wsd"},
    "half the learning rate": {"times_rate": 0.5},
    "twice the learning rate": {"times_rate": 2.0},
    "no weight decay": {"weight_decay": 0.0},
    "weight decay 0.5": {"weight_decay": 0.5},
    "weight decay 1": {"weight_decay": 1.0},
    "dropout 0.1": {"dropout": 0.1},
    "no clipping": {"max_grad_norm": 0.0},
    "biases": {"bias": True},
    "tied embeddings": {"tie_embeddings": True},
    "RMSNorm": {"norm": "rmsnorm"},
    "heads of 64": {"num_heads": 2},
    "classic, 3e-3": {"recipe": "classic", "learning_rate": 3e-3, "warmup_steps": 0.05},
}
CORPORA = {
    "python": {"tokenizer": "bpe", "vocab_size": 2048},
    "multi30k": {"tokenizer": "char"},
    "sms": {"tokenizer": "bpe", "vocab_size": 1024},
}


def settings_of(corpus: str, variant: str, steps: int, data_dir: Path) -> dict[str, Any]:
    settings = {"recipe": "modern", **SIZES, **CORPORA[corpus], "device": "cpu", "threads": 1, "max_steps": steps}
    rate = learning_rate_for(steps * SIZES["batch_size"] * SIZES["max_seq_len"])
    settings |= {"learning_rate": rate, **VARIANTS[variant]}
    settings["learning_rate"] *= settings.pop("times_rate", 1.0)
    settings["warmup_steps"] = round(settings.get("warmup_steps", 0.0) * steps)
    return {**settings, "data": text_of(corpus, data_dir)}


def step_seconds(precision: str) -> dict[str, float]:
    """The median seconds of a step of each variant, in turn; those that compute the same share theirs."""
    batch = torch.randint(0, 2048, (SIZES["batch_size"], SIZES["max_seq_len"] + 1))
    machine = Machine(torch.device("cpu"), precision, 1, "")
    taken: dict[str, list[float]] = {}
    computes: dict[str, str] = {}
    for _ in range(4):  # each time with models of their own, for where they lie in memory matters
        for variant in VARIANTS:
            settings = layered(
                {**settings_of("python", variant, 100, Path()), "data": "dummy", "vocab_size": 2048}, "keyword"
            )
            model, train = slm.LanguageModel(settings.model), settings.train
            with_loss, optimizer = slm.WithLoss(model), make_optimizer(model, train, machine)
            computes[variant] = repr((settings.model, train.optimizer, bool(train.max_grad_norm)))
            for step in range(8):
                start = time.process_time()
                train_step(
                    with_loss,
                    optimizer,
                    batch[:, :-1],
                    batch[:, 1:],
                    micro_batch_size=len(batch),
                    max_grad_norm=train.max_grad_norm,
                    machine=machine,
                    scaler=machine.grad_scaler(),
                )
                if step > 1:
                    taken.setdefault(computes[variant], []).append(time.process_time() - start)
    return {variant: statistics.median(taken[what]) for variant, what in computes.items()}


def run(task: dict[str, Any]) -> Any:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if task["what"] == "precision":
        model = slm.LanguageModel(slm.ModelConfig(vocab_size=2048, num_layers=4, max_seq_len=64))
        tokens = torch.randint(0, 2048, (24, 64))
        return choose(time_steps(model, (tokens, tokens), [Choice(1, "fp32"), Choice(1, "bf16")]))[0].precision
    if task["what"] == "times":
        return step_seconds(task["precision"])
    steps = task["steps"]
    run = slm.train(
        **settings_of(task["corpus"], task["variant"], steps, Path(task["data_dir"])),
        seed=task["seed"],
        precision=task["precision"],
        eval_every=steps,
        val_tokens=100_000,
        quiet=True,
    )
    return run.history.evaluations[-1]["val_bits_per_byte"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--steps", type=int, default=260)
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--only", nargs="+", choices=list(CORPORA), default=["python", "multi30k"])
    parser.add_argument("--results", type=Path, help="file that keeps what was measured, to go on from")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.task:
        print(json.dumps(run(json.loads(arguments.task))))
        return
    results = Results(arguments.results, __file__)

    def measure(**task: Any) -> Any:
        return results.of_task(task)

    precision = measure(what="precision")
    seconds = measure(what="times", precision=precision)
    print(f"{where()}, 1 thread, {precision}, {len(arguments.seeds)} seeds; bits per byte, and difference from modern")
    print("| | time of a step |" + "".join(f" {corpus} | |" for corpus in arguments.only))
    print("|---|---|" + "---|---|" * len(arguments.only), flush=True)
    base: dict[str, list[float]] = {}
    for variant in dict.fromkeys(["modern", *arguments.variants]):
        ratio = seconds[variant] / seconds["modern"]
        row = f"| {variant} | {ratio:.2f} |"
        for corpus in arguments.only:
            task = {"what": "run", "corpus": corpus, "variant": variant, "steps": round(arguments.steps / ratio)}
            task |= {"precision": precision, "data_dir": str(arguments.data_dir)}
            losses = [measure(**task, seed=seed) for seed in arguments.seeds]
            differences = [a - b for a, b in zip(losses, base.setdefault(corpus, losses), strict=True)]
            error = statistics.stdev(differences) / len(losses) ** 0.5 if len(losses) > 1 else 0.0
            row += f" {statistics.mean(losses):.4f} | {statistics.mean(differences):+.4f} +- {error:.4f} |"
        print(row, flush=True)


if __name__ == "__main__":
    main()
