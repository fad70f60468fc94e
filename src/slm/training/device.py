"""Device, precision and threads: chosen once before step 0, each with its reason; and what will fit in memory."""

from __future__ import annotations

import dataclasses
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from slm.config import ModelConfig, TrainConfig, UserError
from slm.metrics.speed import flops_per_token, measured_peak
from slm.model.functions import MOST_POSITIONS
from slm.model.loss import MOST_LOGITS, rows_at_once
from slm.model.transformer import LanguageModel
from slm.training.tuning import SECONDS, Choice, choose, seconds_of_step, thread_counts, time_steps

_WORTH_COMPILING_SECONDS = 600.0  # a minute or two for compiling, which gains 10 to 40 %
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Machine:
    """Where and how a run computes, with the reasons in words."""

    device: torch.device
    precision: str
    threads: int
    why: str
    compile: bool = False

    def autocast(self) -> AbstractContextManager[Any]:
        """The context that runs matrix products in this precision."""
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=_DTYPES[self.precision])

    def grad_scaler(self) -> torch.amp.GradScaler:
        """The loss scaling that fp16 needs; does nothing in the other precisions."""
        return torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")

    def take(self, tokens: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """A batch on this device; the copy to a GPU goes on while the host prepares the step."""
        if self.device.type == "cuda":
            tokens, targets = tokens.pin_memory(), targets.pin_memory()
        return tokens.to(self.device, non_blocking=True), targets.to(self.device, non_blocking=True)

    def wait(self) -> None:
        """Returns when an accelerator has done what it was asked for."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()

    def free_memory(self) -> None:
        """Gives back what torch keeps of an accelerator's memory for later."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        elif self.device.type == "mps":
            torch.mps.empty_cache()

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """A context in which torch computes with this machine's number of CPU threads.

        Where half precision is fine, what stays in fp32 on a GPU may be computed in TF32.
        """
        before, tf32 = torch.get_num_threads(), torch.backends.cuda.matmul.allow_tf32
        torch.set_num_threads(self.threads)
        if self.device.type == "cuda" and self.precision != "fp32":
            torch.backends.cuda.matmul.allow_tf32 = True
        try:
            yield
        finally:
            torch.set_num_threads(before)
            torch.backends.cuda.matmul.allow_tf32 = tf32


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


def choose_machine(
    config: TrainConfig, model: nn.Module, batch: tuple[Tensor, Tensor], total_steps: int = 0, seconds: float = SECONDS
) -> Machine:
    """The device, precision and threads that the settings ask for, "auto" replaced by the best that is here.

    batch: some (tokens, targets) (B, T), for timing the model where that decides, as does total_steps. seconds: that
    timing may take, about.
    """
    device, why_device = choose_device(config.device)
    most = torch.get_num_threads()
    if device.type != "cpu":
        precision, why = _precision_of_gpu(config.precision, device)
        why = f"{_with(str(device), why_device)}; {precision}{why}"
        machine = Machine(device, precision, config.threads or most, why, config.compile == "on")
        if config.compile == "auto" and device.type == "cuda":
            return _with_compile(machine, model, batch, config, total_steps)
        return machine
    counts = [config.threads] if config.threads else thread_counts(most)
    precisions = ["fp32", "bf16"] if config.precision == "auto" else [config.precision]
    if precisions == ["fp32", "bf16"] and not _has_bf16():
        precisions, why_device = ["fp32"], why_device + ", no bf16"
    choices = [Choice(threads, precision) for precision in precisions for threads in counts]
    chosen, why = choices[-1], ""
    if len(choices) > 1 and config.precision != "fp16":
        timed = time_steps(model, batch, choices, seconds)
        chosen, why = choose(timed) if timed else (chosen, "")  # a model that cannot run says so in its first step
    threads = f"{chosen.threads} thread{'s' * (chosen.threads > 1)}"
    told = _with(str(device), ", ".join(filter(None, (threads, why_device))))
    why = f"{told}; {_with(chosen.precision, why)}"
    # Compiling takes long on CPUs and gains little or loses there: auto never does it.
    return Machine(device, chosen.precision, chosen.threads, why, config.compile == "on")


def _with_compile(
    machine: Machine, model: nn.Module, batch: tuple[Tensor, Tensor], config: TrainConfig, total_steps: int
) -> Machine:
    """The machine with torch.compile where the run will be long enough to pay the time for it back."""
    seconds = 60 * (config.max_minutes or 0) or total_steps * seconds_of_step(model, batch, machine)[0]
    if seconds < _WORTH_COMPILING_SECONDS:
        return machine
    return dataclasses.replace(machine, compile=True, why=f"{machine.why}; compiled (the run is long)")


def _with(what: str, why: str) -> str:
    return f"{what} ({why})" if why else what


def _has_bf16() -> bool:
    """False where this CPU only emulates bf16, slowly."""
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return supported is None or bool(supported())


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


def _precision_of_gpu(name: str, device: torch.device) -> tuple[str, str]:
    """The precision and why, as words to follow its name."""
    native = (
        device.type != "cuda" or torch.cuda.get_device_capability(device) >= (8, 0) or torch.version.hip is not None
    )
    if name != "auto":
        return name, " (which this GPU only emulates)" if name == "bf16" and not native else ""
    if device.type != "cuda":
        return "fp32", f" (half precision on {device.type} is untested)"
    if native:
        return "bf16", " (native on this GPU)"
    return "fp16", " with loss scaling (this GPU has no native bf16)"


def estimate_memory(model: ModelConfig, micro_batch_size: int, batch_positions: int, device: torch.device) -> int:
    """About how many bytes training takes: weights, gradients, AdamW's two moments, the best weights, activations.

    batch_positions is T, the length of a window. The numbers kept for the backward pass were counted in the model's
    code, all as float32: an upper bound for half precision.
    """
    positions = micro_batch_size * batch_positions
    # Attention keeps a weight for each pair of positions where that is faster (model/functions.py).
    per_layer = 10 * model.embed_dim + 4 * model.hidden_dim + model.num_heads * min(batch_positions, MOST_POSITIONS)
    activations = positions * (model.num_layers * per_layer + 4 * model.embed_dim)
    rows = min(positions, max(rows_at_once(model.vocab_size, device), MOST_LOGITS // model.vocab_size))
    activations += 4 * rows * model.vocab_size + model.vocab_size * model.embed_dim
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
    needed, there = estimate_memory(model, micro_batch_size, batch_positions, device), memory_of(device)
    if there is None or needed <= there:
        return needed
    without_batch = estimate_memory(model, 0, batch_positions, device)
    advice = (
        f"Lower --micro_batch_size (now {micro_batch_size}; the result stays the same) or --max_seq_len"
        if without_batch < there / 2 and micro_batch_size > 1
        else f"The model itself has {model.num_parameters:,} parameters: lower --embed_dim, --num_layers, "
        "--hidden_dim or --vocab_size"
    )
    raise UserError(
        f"This run needs about {needed / 1e9:,.1f} GB of memory, and {device} has {there / 1e9:,.1f} GB. {advice}."
    )


def hardware(device: torch.device) -> str:
    """The processor that computes, in words: "AMD EPYC 7B13, 2 cores"."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name, info = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text(errors="replace").splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    return f"{name}, {os.cpu_count()} cores"


def peak_tokens_per_second(model: nn.Module, machine: Machine) -> float | None:
    """Tokens per second of which the floating-point operations alone would take all that this machine can do.

    None for a model whose operations are not known. To be called where the machine is in use.
    """
    if type(model) is not LanguageModel:
        return None
    peak = measured_peak(str(machine.device), machine.precision, machine.threads)
    return peak / flops_per_token(model.config)


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
