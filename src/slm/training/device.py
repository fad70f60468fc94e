"""Device, precision and threads: chosen once before step 0, each with its reason; and what will fit in memory."""

from __future__ import annotations

import dataclasses
import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from slm.config import ModelConfig, TrainConfig, UserError
from slm.model.loss import WithLoss

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
# bf16 loses digits, and a choice on the edge could change from run to run: it must be clearly faster on a CPU.
_WORTH_IT = 1.5
_PROBES, _PROBE_POSITIONS = 4, 512


@dataclass(frozen=True)
class Machine:
    """Where and how a run computes, with the reasons in words."""

    device: torch.device
    precision: str
    threads: int
    why: str

    def autocast(self) -> AbstractContextManager[Any]:
        """The context that runs matrix products in this precision."""
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=_DTYPES[self.precision])

    def grad_scaler(self) -> torch.amp.GradScaler:
        """The loss scaling that fp16 needs; does nothing in the other precisions."""
        return torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")

    def free_memory(self) -> None:
        """Gives back what torch keeps of an accelerator's memory for later."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        elif self.device.type == "mps":
            torch.mps.empty_cache()

    @contextmanager
    def with_threads(self) -> Iterator[None]:
        """A context in which torch computes with this machine's number of CPU threads."""
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)


@contextmanager
def seeded(device: torch.device, seed: int) -> Iterator[None]:
    """A context whose random numbers start from the seed; torch's own generators are as before afterwards."""
    mps_state = torch.mps.get_rng_state() if device.type == "mps" else None  # fork_rng knows CPU and CUDA only
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed devices that are not ours, too
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        elif device.type == "mps":
            torch.mps.manual_seed(seed)
        try:
            yield
        finally:
            if mps_state is not None:
                torch.mps.set_rng_state(mps_state)


def random_state(device: torch.device) -> list[Tensor]:
    """The state of torch's random streams: that of the CPU, and that of an accelerator where training uses one."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    elif device.type == "mps":
        states.append(torch.mps.get_rng_state())
    return states


def set_random_state(device: torch.device, states: list[Tensor]) -> None:
    """Puts the streams back to `random_state`; a stream of another kind of device stays as it is."""
    torch.set_rng_state(states[0])
    if device.type == "cuda" and len(states) > 1:
        torch.cuda.set_rng_state(states[1], device)
    elif device.type == "mps" and len(states) > 1:
        torch.mps.set_rng_state(states[1])


def is_out_of_memory(error: RuntimeError) -> bool:
    """True where an accelerator's memory was full."""
    return isinstance(error, torch.OutOfMemoryError) or "MPS backend out of memory" in str(error)


def choose_machine(config: TrainConfig, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Machine:
    """The device, precision and threads that the settings ask for, "auto" replaced by the best that is here.

    batch: some (tokens, targets) (B, T), for timing the model where that decides.
    """
    device, why_device = choose_device(config.device)
    threads = config.threads or torch.get_num_threads()
    if device.type == "cpu":
        why_device = ", ".join(filter(None, [f"{threads} thread{'s' * (threads > 1)}", why_device]))
    machine = Machine(device, "fp32", threads, f"{device} ({why_device})" if why_device else str(device))
    with machine.with_threads():
        precision, why = _choose_precision(config.precision, device, model, batch)
    return dataclasses.replace(machine, precision=precision, why=f"{machine.why}; {precision}{why}")


def choose_device(name: str) -> tuple[torch.device, str]:
    """The device of that name, "auto" being the fastest here, and why. Raises UserError where it is not here."""
    here = ["cpu"]
    here += [f"cuda:{index}" for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    here += ["mps"] if torch.backends.mps.is_available() else []
    if name == "auto":
        if len(here) == 1:
            return torch.device("cpu"), "no CUDA or MPS here"
        return torch.device(here[1]), "the fastest here"
    aliases = {"cuda": "cuda:0", "mps:0": "mps", "cpu:0": "cpu"}
    if aliases.get(name, name) not in here:
        raise UserError(f"device = {name!r}: this machine has {', '.join(here)}. Choose one of them, or auto.")
    return torch.device(name), ""


def _choose_precision(
    name: str, device: torch.device, model: nn.Module, batch: tuple[Tensor, Tensor]
) -> tuple[str, str]:
    """The precision and why, as words to follow its name."""
    native = (
        device.type != "cuda" or torch.cuda.get_device_capability(device) >= (8, 0) or torch.version.hip is not None
    )
    if name != "auto":
        return name, " (which this GPU only emulates)" if name == "bf16" and not native else ""
    if device.type == "cuda":
        if native:
            return "bf16", " (native on this GPU)"
        return "fp16", " with loss scaling (this GPU has no native bf16)"
    if device.type != "cpu":
        return "fp32", f" (half precision on {device.type} is untested)"
    try:
        gain = _bf16_gain(WithLoss(model), *batch)
    except RuntimeError:  # a module of the user's own that cannot
        return "fp32", " (the model does not run in bf16)"
    if gain >= _WORTH_IT:
        return "bf16", f" ({gain:.1f} times as fast as fp32 here)"
    return "fp32", f" (bf16 is {gain:.1f} times as fast here, worth it from {_WORTH_IT} on)"


def _bf16_gain(with_loss: WithLoss, tokens: Tensor, targets: Tensor) -> float:
    """How many times faster this CPU runs this model, forward and backward, in bf16 than in fp32.

    Not a bare matrix product: casts, and what stays in fp32, eat up much of what bf16 gains there.
    """
    windows = max(1, _PROBE_POSITIONS // tokens.size(1))
    tokens, targets = tokens[:windows, :_PROBE_POSITIONS], targets[:windows, :_PROBE_POSITIONS]
    was_training = with_loss.training
    with_loss.eval()  # draws no dropout

    def seconds(enabled: bool) -> float:
        start = time.perf_counter()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            loss = with_loss(tokens, targets)
        loss.backward()
        return time.perf_counter() - start

    fp32 = bf16 = math.inf
    for _ in range(_PROBES):  # in turn, so that a machine that gets busy slows both
        fp32, bf16 = min(fp32, seconds(False)), min(bf16, seconds(True))
        if bf16 > fp32:  # although the first round of fp32 paid for warming up: no need to look again
            break
    with_loss.zero_grad(set_to_none=True)
    with_loss.train(was_training)
    return fp32 / bf16


def estimate_memory(model: ModelConfig, micro_batch_size: int, batch_positions: int) -> int:
    """About how many bytes training takes: weights, gradients, AdamW's two moments, the best weights, activations.

    batch_positions is T, the length of a window. The numbers kept for the backward pass were counted in the model's
    code, all as float32: an upper bound for half precision.
    """
    positions = micro_batch_size * batch_positions
    per_layer = 10 * model.embed_dim + 4 * model.hidden_dim
    activations = positions * (model.num_layers * per_layer + 4 * model.embed_dim + 4 * model.vocab_size)
    if model.document_start is not None:  # each layer keeps its mask
        activations += model.num_layers * positions * batch_positions
    angles = 2 * model.num_layers * model.max_seq_len * model.head_dim if model.positions == "rope" else 0
    return 4 * (5 * model.num_parameters + activations + angles)


def memory_of(device: torch.device) -> int | None:
    """The bytes of memory that a process may use on a device, None where that cannot be told."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    limits = [limit for limit in (_physical_memory(), _cgroup_limit()) if limit]
    return min(limits, default=None)


def check_memory(model: ModelConfig, micro_batch_size: int, batch_positions: int, device: torch.device) -> int:
    """The estimate of training's memory in bytes; raises UserError where it is more than the machine has."""
    needed, there = estimate_memory(model, micro_batch_size, batch_positions), memory_of(device)
    if there is None or needed <= there:
        return needed
    without_batch = estimate_memory(model, 0, batch_positions)
    advice = (
        f"Lower --micro_batch_size (now {micro_batch_size}; the result stays the same) or --max_seq_len"
        if without_batch < there / 2 and micro_batch_size > 1
        else f"The model itself has {model.num_parameters:,} parameters: lower --embed_dim, --num_layers, "
        "--hidden_dim or --vocab_size"
    )
    raise UserError(
        f"This run needs about {needed / 1e9:,.1f} GB of memory, and {device} has {there / 1e9:,.1f} GB. {advice}."
    )


def _physical_memory() -> int | None:
    if sys.platform == "win32":
        return _windows_memory()
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _windows_memory() -> int | None:
    import ctypes

    class MemoryStatus(ctypes.Structure):
        _fields_ = (
            ("length", ctypes.c_ulong),
            ("load", ctypes.c_ulong),
            ("total_physical", ctypes.c_ulonglong),
            ("others", ctypes.c_ulonglong * 6),
        )

    status = MemoryStatus(length=ctypes.sizeof(MemoryStatus))
    if not ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):  # type: ignore[attr-defined, unused-ignore]
        return None
    return int(status.total_physical)


def _cgroup_limit() -> int | None:
    """The limit that a container sets (Linux, control groups version 2 or 1)."""
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        if Path(path).exists():
            text = Path(path).read_text().strip()
            return int(text) if text.isdigit() else None
    return None
