"""What throw-away steps tell: the number of threads and the precision in which this machine is fastest, now.

No rule replaces the measurement: a second thread halves the time of a step on an idle machine, and multiplies it where
another process keeps the cores busy, because threads wait for each other by spinning.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from slm.model.loss import WithLoss
from slm.model.transformer import LanguageModel

if TYPE_CHECKING:
    from slm.training.adamw import Optimizer
    from slm.training.device import Machine

# bf16 loses digits, and a choice on the edge could change from run to run: it must be clearly faster on a CPU.
WORTH_IT = 1.25
SECONDS = 1.0  # spent on timing, about, where two rounds do not take longer
_ROUNDS = 12
_HOPELESS = 2.0  # times the fastest: not timed again
_POSITIONS = 4096  # of a step, at most


class Choice(NamedTuple):
    """A number of threads and a precision, fp32 or bf16."""

    threads: int
    precision: str


def thread_counts(most: int) -> list[int]:
    """The numbers of threads worth trying: powers of two, and `most`."""
    counts = [2**power for power in range(most.bit_length()) if 2**power < most]
    return [*counts, most]


def quick_part(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """As many windows of tokens and targets (B, T) as a quick step on a CPU allows."""
    rows = max(1, _POSITIONS // batch[0].size(1))
    return batch[0][:rows], batch[1][:rows]


def time_steps(
    model: nn.Module, batch: tuple[Tensor, Tensor], choices: Iterable[Choice], seconds_in_all: float = SECONDS
) -> dict[Choice, float]:
    """The mean seconds of a forward and backward on a CPU for each choice that the model can run in.

    batch: tokens and targets (B, T), of which as many windows are taken as a quick step allows. Choices take turns, so
    that a machine that gets busy slows all. The mean, not the best: what disturbs a step now will disturb later ones.
    What is hopelessly slow is not timed again, and told as so many times the fastest mean as it took then.
    """
    tokens, targets = quick_part(batch)
    with_loss, was_training, before = WithLoss(model), model.training, torch.get_num_threads()
    with_loss.eval()  # draws no dropout
    seconds: dict[Choice, list[float]] = {choice: [] for choice in choices}
    hopeless: dict[Choice, float] = {}  # times the fastest
    began = time.perf_counter()
    try:
        for round in range(_ROUNDS + 1):
            for choice in list(seconds):
                taken = _seconds_of_step(with_loss, tokens, targets, choice)
                if taken is None:
                    del seconds[choice]
                elif round:  # the first round warms up
                    seconds[choice].append(taken)
            if round:
                fastest = min(min(times) for times in seconds.values())
                slower = {choice: min(times) / fastest for choice, times in seconds.items()}
                hopeless |= {choice: ratio for choice, ratio in slower.items() if ratio >= _HOPELESS}
                seconds = {choice: times for choice, times in seconds.items() if choice not in hopeless}
            if (round and time.perf_counter() - began > seconds_in_all) or len(seconds) < 2:
                break
    finally:
        torch.set_num_threads(before)
        with_loss.train(was_training)
        with_loss.zero_grad(set_to_none=True)
    means = {choice: sum(times) / max(len(times), 1) for choice, times in seconds.items()}
    return means | {choice: ratio * min(means.values()) for choice, ratio in hopeless.items()}


def _seconds_of_step(with_loss: WithLoss, tokens: Tensor, targets: Tensor, choice: Choice) -> float | None:
    """The seconds of one forward and backward; None where the model cannot run in bf16."""
    torch.set_num_threads(choice.threads)
    start = time.perf_counter()
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=choice.precision == "bf16"):
            loss = with_loss(tokens, targets)
        loss.backward()
    except RuntimeError:
        if choice.precision != "bf16":
            raise
        return None
    with_loss.zero_grad(set_to_none=True)
    return time.perf_counter() - start


def choose(seconds: dict[Choice, float]) -> tuple[Choice, str]:
    """The fastest choice, with bf16 only where it is clearly faster, and the reason in words."""
    best = {precision: _fastest(seconds, precision) for precision in ("fp32", "bf16")}
    chosen = best["fp32"] or best["bf16"]
    assert chosen is not None
    words = []
    if best["fp32"] and best["bf16"]:
        gain = seconds[best["fp32"]] / seconds[best["bf16"]]
        if gain >= WORTH_IT:
            chosen = best["bf16"]
        beside = "" if gain >= WORTH_IT else f", worth it from {WORTH_IT} on"
        words.append(f"bf16 is {gain:.1f} times as fast as fp32 here{beside}")
    others = [choice for choice in seconds if choice.precision == chosen.precision]
    if len(others) > 1:
        told = ", ".join(f"{_milliseconds(seconds[one])} ms with {one.threads}" for one in sorted(others))
        words.append(f"a step takes {told}")
    return chosen, "; ".join(words)


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:,.0f}" if seconds >= 1 else f"{1000 * seconds:.3g}"


def _fastest(seconds: dict[Choice, float], precision: str) -> Choice | None:
    return min((choice for choice in seconds if choice.precision == precision), key=seconds.__getitem__, default=None)


def seconds_of_step(
    model: nn.Module, batch: tuple[Tensor, Tensor], machine: Machine, optimizer: Optimizer | None = None
) -> tuple[float, float]:
    """The seconds of a forward and backward of a whole batch, and of the update that an optimizer then makes."""
    with_loss, was_training, best = WithLoss(model), model.training, (math.inf, math.inf)
    with_loss.eval()
    tokens, targets = machine.take(*batch)
    with machine.in_use():
        for _ in range(3):  # the first one warms up
            machine.wait()
            start = time.perf_counter()
            with machine.autocast():
                loss = with_loss(tokens, targets)
            loss.backward()
            machine.wait()
            middle = time.perf_counter()
            if optimizer:
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                machine.wait()
            best = min(best[0], middle - start), min(best[1], time.perf_counter() - middle)
            with_loss.zero_grad(set_to_none=True)
    with_loss.train(was_training)
    return best


@contextmanager
def compiled(with_loss: nn.Module, batch: tuple[Tensor, Tensor], machine: Machine) -> Iterator[nn.Module]:
    """A context that gives a WithLoss compiled, or as it is where that fails, with a warning.

    Of a LanguageModel the blocks are compiled: they are alike, so that compiling one serves all, and the loss keeps its
    own way of never holding all logits.
    """
    model = with_loss.model
    blocks = list(model.blocks) if isinstance(model, LanguageModel) else []
    training = with_loss.training
    try:
        for block in blocks:
            block.compile()
        module = with_loss if blocks else cast(nn.Module, torch.compile(with_loss))
        with torch.random.fork_rng(devices=[machine.device] if machine.device.type == "cuda" else []):
            with machine.autocast():
                loss = module.train()(*machine.take(*batch))
            loss.backward()
        # A shape that comes later, such as that of an evaluation, may fail, too: it then runs without.
        later: AbstractContextManager[Any] = torch._dynamo.config.patch(suppress_errors=True)
    except Exception as error:  # whatever a compiler may find wrong
        warnings.warn(
            f"torch.compile failed ({' '.join(str(error).split()):.200}): training goes on without it.", stacklevel=2
        )
        _restore(blocks)
        module, later = with_loss, nullcontext()
    with_loss.zero_grad(set_to_none=True)
    with_loss.train(training)
    try:
        with later:
            yield module
    finally:
        _restore(blocks)


def _restore(blocks: Iterable[nn.Module]) -> None:
    for block in blocks:
        block._compiled_call_impl = None
