"""Minutes -> vocabulary, sizes, batch and rates: a law of losses and a few timed steps choose the model to train.

The law has the form of Hoffmann et al. 2022, equation 2: a loss falls with parameters and with tokens, each to a power
of its own. Tokens that are seen again count less each time, as Muennighoff et al. 2023, equation 5, found. Only the
ratio of the two terms matters here, for it decides which size wins. `benchmarks/scaling.py` fits RATIO, ALPHA, BETA and
REPEATS; the rules for batch, rates and regularization come from trials on the same corpora.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from slm.config import ModelConfig, TrainConfig
from slm.data.counts import many
from slm.metrics.speed import flops_per_token, matrix_parameters
from slm.model.transformer import LanguageModel
from slm.training.device import Machine, choose_machine, estimate_memory, memory_of
from slm.training.optimizer import make_optimizer
from slm.training.tuning import SECONDS, seconds_of_step

# loss = E + s (RATIO / parameters^ALPHA + 1 / tokens^BETA), both in millions and worth less beyond what the text holds.
RATIO, ALPHA, BETA = 0.28, 0.53, 0.38
LEAST_DECAY, MOST_DECAY = 0.1, 2.0  # the latter where a pass has few steps; more was not better in trials
REPEATS = 3.7  # epochs after the first, of which the last is worth a third of it
PARAMETERS_PER_TOKEN = 20.0  # a guard for tiny texts: parameters beyond so many for each of its tokens are worth less

WIDTHS = (64, 96, 128, 192, 256, 320, 384, 512, 640, 768, 1024, 1280, 1536, 2048)
PLANNED = (
    "embed_dim", "num_heads", "num_layers", "hidden_dim", "max_seq_len", "vocab_size", "tie_embeddings", "dropout",
    "weight_decay", "batch_size", "micro_batch_size", "learning_rate", "schedule", "val_tokens",
)  # fmt: skip
_EVERY = 3  # of so many widths one is timed
_PROBE_TOKENS = 1024
_PLANNING_SHARE = 0.03  # of the time, at most, but for steps that take long
_TRAINING_SHARE = 0.92  # of the time; the rest goes to evaluations
_MEMORY_SHARE = 0.5
_AS_GOOD = 1.003  # times the lowest prediction: the smallest model within it is chosen
_TOO_OFTEN = 30  # times that a text is read without a word
_TIMES_A_CPU = {"cuda": 100, "mps": 10}  # about; how much more an accelerator gets done


@dataclass(frozen=True)
class Plan:
    """What to train, as settings, and why, in words."""

    settings: dict[str, Any]
    why: str


def vocabulary_for(num_bytes: float, seconds: float, device: torch.device) -> int:
    """The size of a BPE vocabulary that suits a text of so many bytes and so much time, a power of two."""
    by_text, by_time = max(num_bytes, 1) / 450, 3000 * (seconds / 60 * _TIMES_A_CPU.get(device.type, 1)) ** 0.25
    return int(2 ** max(9, min(15, round(math.log2(min(by_text, by_time))))))


def predicted_loss(parameters: float, tokens: float, text_tokens: float) -> float:
    """What the size of a model adds to the loss, without unit, when it has seen so many tokens of a text."""
    parameters = _worth(parameters, PARAMETERS_PER_TOKEN * text_tokens)
    return float(RATIO / (parameters / 1e6) ** ALPHA + (_worth(tokens, text_tokens) / 1e6) ** -BETA)


def _worth(amount: float, unique: float) -> float:
    """What an amount is worth of which only a part is of full worth (Muennighoff et al. 2023, equation 5)."""
    if amount <= unique:
        return amount
    return unique * (1 - REPEATS * math.expm1(-(amount / unique - 1) / REPEATS))


def heads_for(width: int, multiple_of: int = 1) -> int:
    """Attention heads of 64 numbers, or of 32 in narrow models; as near as the width allows."""
    wanted = width / (64 if width >= 256 else 32)
    fine = [heads for heads in range(multiple_of, width + 1, multiple_of) if width % (2 * heads) == 0]
    return min(fine or [multiple_of], key=lambda heads: abs(heads - wanted))


def layers_for(width: int) -> int:
    """Layers for a width: a wide model is a deep one."""
    return max(2, round(width / 64))


def windows_of(text_tokens: float, config: ModelConfig) -> int:
    """How many windows a text has, at least one; no batch has more."""
    return max(1, int(text_tokens - 1) // config.max_seq_len)


def batch_tokens_for(tokens: float, text_tokens: float) -> int:
    """Tokens in a step for a run of so many: more steps learn more from few tokens, larger ones waste less time."""
    return int(2 ** round(math.log2(1.75 * math.sqrt(_worth(tokens, text_tokens)))))


def learning_rate_for(tokens: float, optimizer: str = "muon") -> float:
    """The peak for a run of so many tokens."""
    rate = min(0.02, max(0.003, 0.02 * (tokens / 2e5) ** -0.25))
    return float(rate if optimizer == "muon" else rate / 5)


def weight_decay_for(passes: float, crowding: float, steps_of_pass: float, learning_rate: float) -> float:
    """Weight decay for a text that is read so many times: it lets a model large for the text learn it without harm.

    Each step takes the share learning_rate x weight decay from the weights. What matters is in how many passes they are
    made anew (Wang and Aitchison 2024): in fewer the more parameters there are for each token of the text (crowding).
    `benchmarks/forgetting.py` has the trials.
    """
    times_a_pass = min(1.0, max(0.0, passes - 1) / 4) * (crowding / 6) ** 0.3
    return float(min(MOST_DECAY, max(LEAST_DECAY, times_a_pass / (steps_of_pass * learning_rate))))


def dropout_for(passes: float, crowding: float) -> float:
    """Dropout for a text that is read so often that weight decay alone no longer keeps it from being learned by heart.

    Less where there are few parameters for each token of the text (crowding).
    """
    return int(min(4.0, max(0.0, passes / 4 - 1)) * min(1.0, crowding / 6)) / 20


def dropout_of_pairs(passes: float) -> float:
    """Dropout for pairs that are read so many times: of 29,000 captions 0.1 was better after 7, 0.2 after 14."""
    return 0.1 if passes < 10 else 0.2


def regularization_for(passes: float, crowding: float, steps_of_pass: float, learning_rate: float) -> dict[str, Any]:
    """The settings that suit a text that is read so many times, with so many parameters for each of its tokens."""
    return {
        "weight_decay": weight_decay_for(passes, crowding, steps_of_pass, learning_rate),
        "dropout": dropout_for(passes, crowding),
        "tie_embeddings": passes >= 3,
    }


def make_plan(
    model: ModelConfig,
    train: TrainConfig,
    asked: Mapping[str, Any],
    *,
    text_tokens: int,
    val_tokens: int,
    seconds: float,
    device: torch.device,
    context: int | None = None,
    yours: Container[str] | None = None,
) -> Plan:
    """The plan for so many seconds of training on a text of so many tokens; what is asked for is kept.

    model, train: the settings so far, with the vocabulary that the tokenizer really has. context: positions of a
    typical window, where the text comes in examples that are no windows. yours: what of asked is told as such, None for
    all of it.
    """
    clock = time.monotonic()
    if context:
        model = dataclasses.replace(model, max_seq_len=context)
    elif "max_seq_len" not in asked:
        model = dataclasses.replace(model, max_seq_len=context_for(seconds))
    candidates, memory = _candidates(model, asked), memory_of(device)
    if memory:
        fitting = [c for c in candidates if estimate_memory(c, 1, c.max_seq_len, device) <= _MEMORY_SHARE * memory]
        candidates = fitting or candidates[:1]
    # A model of middle size tells threads and precision; both are kept for the one that is chosen.
    middle = candidates[min(3, (len(candidates) - 1) // 2)]
    train = dataclasses.replace(train, device=str(device), compile="off")
    share = min(_PLANNING_SHARE * seconds / 2, SECONDS)
    machine = choose_machine(train, LanguageModel(middle), _batch(middle), seconds=share)
    speeds = _Speeds(train, machine, candidates, _PLANNING_SHARE * seconds)
    left = max(1.0, seconds - (time.monotonic() - clock))
    weighed = []
    for candidate in candidates:
        batch_size, tokens = speeds.fill(left * _TRAINING_SHARE, candidate, text_tokens, asked.get("batch_size"))
        loss = predicted_loss(matrix_parameters(candidate), tokens, text_tokens)
        weighed.append((loss, batch_size, tokens, candidate))
    enough = _AS_GOOD * min(weighed, key=lambda one: one[0])[0]
    _, batch_size, tokens, chosen = next(one for one in weighed if one[0] <= enough)  # the smallest that is as good
    yours = asked if yours is None else yours
    pairs = {} if context is None else {"dropout": dropout_of_pairs(tokens / text_tokens)}
    return _plan(chosen, batch_size, train, asked, yours, pairs, tokens, text_tokens, val_tokens, machine, memory)


def context_for(seconds: float) -> int:
    """Positions in a window."""
    return 128 if seconds < 45 else 256


def _kept(model: ModelConfig, planned: Mapping[str, Any], asked: Mapping[str, Any]) -> ModelConfig:
    return dataclasses.replace(model, **{name: value for name, value in planned.items() if name not in asked})


def _candidates(model: ModelConfig, asked: Mapping[str, Any]) -> list[ModelConfig]:
    """Models from small to large: of all widths, or of all depths where the width is asked for."""
    if "embed_dim" not in asked:
        made = [_sized(model, width, layers_for(width), asked) for width in WIDTHS]
    else:
        most = layers_for(model.embed_dim)
        depths = sorted({max(1, most >> halvings) for halvings in range(most.bit_length())})
        made = [_sized(model, model.embed_dim, depth, asked) for depth in depths]
    return list({repr(candidate): candidate for candidate in made}.values())


def _sized(model: ModelConfig, width: int, layers: int, asked: Mapping[str, Any]) -> ModelConfig:
    """The candidate of that width, or of the nearest above it that the heads asked for divide."""
    unit = asked.get("num_heads") or asked.get("num_kv_heads") or 1
    if "embed_dim" not in asked:
        width = -(-width // (2 * unit)) * 2 * unit
    heads = model.num_heads if "num_heads" in asked else heads_for(width, unit)
    planned = {"embed_dim": width, "num_heads": heads, "num_layers": layers, "hidden_dim": 4 * width}
    return _kept(model, planned, {name for name in asked if name != "embed_dim"})  # type: ignore[arg-type]


def _batch(config: ModelConfig) -> tuple[torch.Tensor, torch.Tensor]:
    rows = max(1, _PROBE_TOKENS // config.max_seq_len)
    tokens = torch.zeros(rows, config.max_seq_len + 1, dtype=torch.long)
    return tokens[:, :-1], tokens[:, 1:]


class _Speeds:
    """Seconds of a token and of an update, timed for a few sizes, and reckoned for those between and beyond."""

    def __init__(self, train: TrainConfig, machine: Machine, candidates: list[ModelConfig], seconds: float) -> None:
        began = time.monotonic()
        self.timed: list[tuple[float, float, float, float]] = []  # log flops, log s per token, log numbers, log s
        for config in candidates[::_EVERY]:
            per_token, per_update = _time(config, train, machine)
            numbers = float(config.num_parameters)
            self.timed.append(tuple(map(math.log, (flops_per_token(config), per_token, numbers, per_update))))  # type: ignore[arg-type]
            if time.monotonic() - began > seconds / 3:  # the next one takes a few times as long
                break

    def fill(
        self, seconds: float, config: ModelConfig, text_tokens: float, batch_size: int | None
    ) -> tuple[int, float]:
        """Windows of a batch, where they are not asked for, and how many tokens a training of so many seconds sees.

        An update takes no more time than the batch before it, where the text has so many windows.
        """
        all_windows = windows_of(text_tokens, config)
        flops, numbers = math.log(flops_per_token(config)), math.log(config.num_parameters)
        per_token = math.exp(_between(flops, [(f, t) for f, t, _, _ in self.timed]))
        per_update = math.exp(_between(numbers, [(n, u) for _, _, n, u in self.timed]))
        windows, tokens = 1, seconds / per_token
        for _ in range(4):  # the batch depends on the tokens, and the tokens on how often there is an update
            wanted = max(batch_tokens_for(tokens, text_tokens), per_update / per_token)
            windows = min(batch_size or max(1, round(wanted / config.max_seq_len)), all_windows)
            tokens = seconds / (per_token + per_update / (windows * config.max_seq_len))
        return batch_size or windows, tokens


def _between(x: float, points: list[tuple[float, float]]) -> float:
    """y at x on the lines through points; beyond the last, a line of slope 1 (as much more time as work)."""
    if x >= points[-1][0] or len(points) == 1:
        return points[-1][1] + (x - points[-1][0])
    upper = next(index for index, point in enumerate(points) if index and (x < point[0] or point is points[-1]))
    (x0, y0), (x1, y1) = points[upper - 1], points[upper]
    return y0 + (x - x0) * (y1 - y0) / (x1 - x0)


def _time(config: ModelConfig, train: TrainConfig, machine: Machine) -> tuple[float, float]:
    """The seconds of a token and of an update."""
    model, batch = LanguageModel(config).to(machine.device), _batch(config)
    forward, update = seconds_of_step(model, batch, machine, make_optimizer(model, train, machine))
    return forward / batch[0].numel(), update


def _plan(
    chosen: ModelConfig,
    batch_size: int,
    train: TrainConfig,
    asked: Mapping[str, Any],
    yours: Container[str],
    others: Mapping[str, Any],
    tokens: float,
    text_tokens: int,
    val_tokens: int,
    machine: Machine,
    memory: int | None,
) -> Plan:
    micro_batch_size = batch_size
    while micro_batch_size > 1 and memory:
        if estimate_memory(chosen, micro_batch_size, chosen.max_seq_len, machine.device) <= _MEMORY_SHARE * memory:
            break
        micro_batch_size = -(-micro_batch_size // 2)
    rate = float(asked.get("learning_rate") or max(learning_rate_for(tokens, train.optimizer), train.min_learning_rate))
    passes, crowding = tokens / text_tokens, matrix_parameters(chosen) / text_tokens
    batch_tokens = min(batch_size, windows_of(text_tokens, chosen)) * chosen.max_seq_len
    settings = {
        **{name: getattr(chosen, name) for name in ("embed_dim", "num_heads", "num_layers", "hidden_dim")},
        "max_seq_len": chosen.max_seq_len,
        **regularization_for(passes, crowding, text_tokens / batch_tokens, rate),
        "batch_size": batch_size,
        "micro_batch_size": micro_batch_size,
        "learning_rate": rate,
        "schedule": "wsd",
        "val_tokens": max(20_000, min(val_tokens, int(0.05 * tokens))),
        "threads": machine.threads,
        "precision": machine.precision,
        **others,
    }
    is_chosen = not ("num_layers" in asked and "embed_dim" in asked)
    return Plan(settings, _reasons({**settings, **asked}, yours, tokens, passes, crowding, machine, is_chosen))


def _reasons(
    made: Mapping[str, Any],
    asked: Container[str],
    tokens: float,
    passes: float,
    crowding: float,
    machine: Machine,
    is_chosen: bool,
) -> str:
    """Why the settings are what they are, line by line; what was asked for is told as such. is_chosen: the size is."""

    def told(name: str, format: str = "") -> str:
        return f"{made[name]:{format}}{' (yours)' * (name in asked)}"

    sizes = f"{many(made['num_layers'], 'layer')}{' (yours)' * ('num_layers' in asked)} of {told('embed_dim')}"
    if is_chosen:
        sizes += ": smaller learns less from each token, larger sees fewer"
    windows = f"{many(made['batch_size'], 'window')}{' (yours)' * ('batch_size' in asked)}"
    seen = f"{tokens / 1e6:,.1f} million" if tokens >= 1e5 else f"{tokens:,.0f}"
    tied = f", {'one table' if made['tie_embeddings'] else 'two tables'} for embeddings and output"
    tied = tied + " (yours)" if "tie_embeddings" in asked else tied * made["tie_embeddings"]
    read = f"the text is read {_short(passes)} times, with {_short(crowding)} parameters for each of its tokens"
    if passes < 1:
        read = f"only {_short(100 * passes)} % of the text is read"
    elif passes > _TOO_OFTEN:
        read += "; more text would help more than more time"
    lines = (
        sizes,
        f"batches of {windows} of {told('max_seq_len')}, learning rate {told('learning_rate', '.2g')}, for the {seen} "
        "tokens that this machine should see in the time",
        f"weight decay {told('weight_decay', '.2g')}, dropout {told('dropout', 'g')}{tied}, because {read}",
        f"timed on {machine.why}",
    )
    return "\n".join(lines)


def _short(number: float) -> str:
    """With one digit after the point, or the first one of a small number."""
    return f"{number:,.1f}" if number >= 0.1 else f"{number:.1g}"
