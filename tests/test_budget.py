"""Laws of the plan: what is asked for is kept, more time never means a smaller model, all fits into memory."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest
import torch

from slm.config import ModelConfig, TrainConfig
from slm.metrics.speed import flops_per_token, matrix_parameters
from slm.model.loss import rows_at_once
from slm.model.transformer import LanguageModel
from slm.training import budget
from slm.training.budget import (
    PLANNED,
    WIDTHS,
    batch_tokens_for,
    heads_for,
    make_plan,
    predicted_loss,
    vocabulary_for,
)
from slm.training.device import estimate_memory

CPU = torch.device("cpu")
MODERN = ModelConfig(vocab_size=2000, positions="rope", bias=False, qk_norm=True, embedding_norm=True)
TRAIN = TrainConfig(optimizer="muon", threads=1, precision="fp32", device="cpu", max_minutes=1.0)


@pytest.fixture(autouse=True)
def made_up_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of 10 TFLOP/s, with an update that takes as long as 1,000 tokens."""

    def time_of(config: ModelConfig, train: TrainConfig, machine: Any) -> tuple[float, float]:
        per_token = flops_per_token(config) / 1e13
        return per_token, 1000 * per_token

    monkeypatch.setattr(budget, "_time", time_of)


def plan(seconds: float = 60.0, text_tokens: int = 10**6, model: ModelConfig = MODERN, **asked: Any) -> dict[str, Any]:
    sizes = {"embed_dim": 32 * asked["num_heads"]} if "num_heads" in asked else {}  # as slm.settings does
    sizes |= {name: value for name, value in asked.items() if hasattr(model, name)}
    model = dataclasses.replace(model, **sizes)
    made = make_plan(
        model, TRAIN, asked, text_tokens=text_tokens, val_tokens=10**5, seconds=seconds, device=CPU
    )  # fmt: skip
    return made.settings


def parameters_of(settings: dict[str, Any]) -> int:
    sizes = {name: value for name, value in settings.items() if hasattr(MODERN, name)}
    return matrix_parameters(dataclasses.replace(MODERN, **sizes))


def test_the_predicted_loss_falls_with_parameters_and_with_tokens() -> None:
    for text in (10**5, 10**7):
        rising = [10**power for power in range(4, 10)]
        by_size = [predicted_loss(parameters, 10**6, text) for parameters in rising]
        by_tokens = [predicted_loss(10**6, tokens, text) for tokens in rising]
        assert all(b <= a for a, b in itertools.pairwise(by_size))
        assert by_size[3] < by_size[0]
        assert all(b <= a for a, b in itertools.pairwise(by_tokens))


def test_a_token_that_is_seen_again_is_worth_less_than_a_new_one() -> None:
    new = predicted_loss(10**6, 10**7, 10**8)
    again = [predicted_loss(10**6, 10**7, text) for text in (10**7, 5 * 10**6, 10**6, 10**5)]
    assert again[0] == new
    assert all(b > a for a, b in itertools.pairwise(again))


def test_matrix_parameters_are_those_that_a_token_is_multiplied_with() -> None:
    for tied, positions in itertools.product((False, True), ("learned", "rope")):
        config = dataclasses.replace(MODERN, tie_embeddings=tied, positions=positions)
        model = LanguageModel(config)
        tables = [p.numel() for name, p in model.named_parameters() if "embedding.weight" in name]
        positions_alone = config.max_seq_len * config.embed_dim if positions == "learned" else 0
        unused = positions_alone if tied else sum(tables)
        assert matrix_parameters(config) == sum(p.numel() for p in model.parameters()) - unused


@pytest.mark.parametrize("width", [*WIDTHS, 2, 6, 100, 258])
def test_heads_divide_the_width_into_even_parts(width: int) -> None:
    heads = heads_for(width)
    assert width % heads == 0
    assert (width // heads) % 2 == 0
    ModelConfig(embed_dim=width, num_heads=heads, positions="rope")


@pytest.mark.parametrize("unit", [1, 2, 3, 5])
def test_heads_are_a_multiple_of_those_of_keys_and_values(unit: int) -> None:
    for width in WIDTHS:
        width = -(-width // (2 * unit)) * 2 * unit
        assert heads_for(width, unit) % unit == 0
        assert width % (2 * heads_for(width, unit)) == 0


def test_a_width_that_is_asked_for_gets_as_many_layers_as_the_time_is_good_for() -> None:
    deep, shallow = (plan(seconds, 10**9, embed_dim=512)["num_layers"] for seconds in (86400, 30))
    assert 1 <= shallow < deep


def test_the_reasons_name_what_was_asked_for_and_not_what_would_have_been() -> None:
    asked = {"dropout": 0.35, "weight_decay": 0.07, "learning_rate": 0.0123}
    made = make_plan(MODERN, TRAIN, asked, text_tokens=10**6, val_tokens=10**5, seconds=60, device=CPU)
    for told in ("dropout 0.35 (yours)", "weight decay 0.07 (yours)", "learning rate 0.012 (yours)"):
        assert told in made.why
    assert made.why.count("(yours)") == len(asked)
    assert "smaller learns less" in made.why
    sizes = {"num_layers": 1, "embed_dim": MODERN.embed_dim}
    fixed = make_plan(MODERN, TRAIN, sizes, text_tokens=10**6, val_tokens=10**5, seconds=60, device=CPU)
    assert fixed.why.startswith(f"1 layer (yours) of {MODERN.embed_dim} (yours)\n")


def test_a_plan_without_time_left_is_made_all_the_same() -> None:
    assert plan(0.0)["embed_dim"] in WIDTHS[:3]


def test_more_time_never_plans_a_smaller_model_or_batch() -> None:
    plans = [plan(seconds, 10**8) for seconds in (30, 60, 180, 600, 3600, 86400)]
    for name in ("embed_dim", "num_layers", "batch_size", "max_seq_len"):
        sizes = [one[name] * (one["max_seq_len"] if name == "batch_size" else 1) for one in plans]
        assert sizes == sorted(sizes), name
    assert parameters_of(plans[-1]) > 10 * parameters_of(plans[0])


def test_a_text_that_is_read_often_is_guarded_against_being_learned_by_heart() -> None:
    large, small = plan(3600, 10**9), plan(3600, 10**5)
    assert (large["weight_decay"], large["dropout"], large["tie_embeddings"]) == (0.1, 0.0, False)
    assert small["weight_decay"] > 0.1
    assert small["tie_embeddings"]
    rising = [budget.regularization_for(passes, 10, 200, 0.01) for passes in (0.1, 1, 3, 6, 10, 30, 1000)]
    for name in ("weight_decay", "dropout", "tie_embeddings"):
        assert [one[name] for one in rising] == sorted(one[name] for one in rising)
        assert rising[0][name] < rising[-1][name] <= 1


def test_a_day_for_a_small_text_does_not_plan_ever_larger_models() -> None:
    hour, day = (parameters_of(plan(seconds, 10**5)) for seconds in (3600, 86400))
    assert day == hour < parameters_of(plan(86400, 10**9))


@pytest.mark.parametrize(
    "asked",
    [
        {"embed_dim": 96},
        {"num_layers": 7},
        {"num_heads": 6},
        {"embed_dim": 96, "num_heads": 3},
        {"hidden_dim": 100},
        {"max_seq_len": 40},
    ],
)
def test_sizes_that_are_asked_for_are_kept_and_the_rest_fits_them(asked: dict[str, int]) -> None:
    settings = plan(**asked)
    sizes = {name: value for name, value in settings.items() if hasattr(MODERN, name)}
    assert {name: sizes[name] for name in asked} == asked
    dataclasses.replace(MODERN, **sizes)  # raises where heads do not divide the width


def test_all_that_is_planned_can_be_kept_for_going_on() -> None:
    measured = {"threads", "precision"}  # which a run takes over where its machine is the same
    assert set(plan()) - measured <= set(PLANNED)
    assert not measured & set(PLANNED)


def test_a_batch_that_is_asked_for_is_taken_whole_where_memory_allows() -> None:
    assert plan(30.0, batch_size=500)["micro_batch_size"] == 500


def test_the_planned_peak_is_never_below_the_lowest_rate_that_is_asked_for() -> None:
    train = dataclasses.replace(TRAIN, optimizer="adamw", learning_rate=0.1, min_learning_rate=0.05)
    made = make_plan(MODERN, train, {"min_learning_rate": 0.05}, text_tokens=10**6, val_tokens=10**5, seconds=60,
                     device=CPU)  # fmt: skip
    assert made.settings["learning_rate"] == 0.05


def test_the_estimate_of_memory_counts_the_pieces_in_which_each_device_makes_logits() -> None:
    config = dataclasses.replace(MODERN, vocab_size=200_000)
    cpu, gpu = (estimate_memory(config, 64, 256, device) for device in (CPU, torch.device("cuda", 0)))
    rows = rows_at_once(200_000, torch.device("cuda", 0))
    assert gpu - cpu == 4 * 4 * 200_000 * (rows - rows_at_once(200_000, CPU)) > 0


def test_the_plan_fits_into_half_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    free = plan(86400, 10**10)
    monkeypatch.setattr(budget, "memory_of", lambda device: 300 * 10**6)
    tight = plan(86400, 10**10)
    sizes = dataclasses.replace(MODERN, **{name: value for name, value in tight.items() if hasattr(MODERN, name)})
    assert estimate_memory(sizes, tight["micro_batch_size"], sizes.max_seq_len, CPU) <= 150 * 10**6
    assert parameters_of(tight) < parameters_of(free)
    assert tight["micro_batch_size"] < tight["batch_size"]


def test_vocabularies_grow_with_the_text() -> None:
    for seconds in (30, 60, 86400):
        sizes = [vocabulary_for(num_bytes, seconds, CPU) for num_bytes in (10**3, 10**5, 10**6, 10**7, 10**9, 10**12)]
        assert sizes == sorted(sizes)
        assert sizes[0] >= 257
        assert sizes[-1] > sizes[0]


def test_vocabularies_grow_with_the_time_and_with_the_device() -> None:
    sizes = [vocabulary_for(10**9, seconds, CPU) for seconds in (30, 300, 3600)]
    assert sizes == sorted(set(sizes))
    assert vocabulary_for(10**9, 60, torch.device("cuda")) > vocabulary_for(10**9, 60, CPU)


def test_batches_grow_with_the_tokens_of_the_run_but_for_those_that_only_repeat() -> None:
    sizes = [batch_tokens_for(tokens, 10**9) for tokens in (10**4, 10**6, 10**8)]
    assert all(b > a for a, b in itertools.pairwise(sizes))
    assert batch_tokens_for(10**8, 10**5) == batch_tokens_for(10**7, 10**5) < sizes[-1]


@pytest.mark.parametrize("crowding", [1, 5, 20])
def test_weights_are_made_anew_in_as_many_passes_whatever_the_batches(crowding: float) -> None:
    made = [
        (steps, rate, budget.weight_decay_for(12, crowding, steps, rate)) for steps, rate in ((90, 0.01), (50, 0.05))
    ]
    times_a_pass = [steps * rate * decay for steps, rate, decay in made]
    assert times_a_pass == pytest.approx([(crowding / 6) ** 0.3] * 2)
    assert budget.weight_decay_for(12, crowding, 1e6, 0.01) == 0.1
    assert budget.weight_decay_for(12, crowding, 1, 0.01) == budget.MOST_DECAY


def test_weight_decay_rises_between_one_pass_and_five() -> None:
    made = [budget.weight_decay_for(passes, 6, 100, 0.01) for passes in (0.5, 1, 2, 3, 5, 100)]
    assert made == pytest.approx([budget.LEAST_DECAY, budget.LEAST_DECAY, 0.25, 0.5, 1, 1])


def test_the_plan_weighs_the_batch_and_the_rate_that_are_asked_for() -> None:
    for asked in ({"batch_size": 3}, {"batch_size": 5}, {"batch_size": 3, "learning_rate": 0.004}):
        made = plan(600, 300_000, embed_dim=64, num_layers=2, **asked)
        sizes = dataclasses.replace(MODERN, **{name: value for name, value in made.items() if hasattr(MODERN, name)})
        expected = budget.weight_decay_for(
            100, matrix_parameters(sizes) / 300_000, 300_000 / (made["batch_size"] * 256), made["learning_rate"]
        )
        assert budget.LEAST_DECAY < expected < budget.MOST_DECAY
        assert made["weight_decay"] == pytest.approx(expected)
        assert {name: made[name] for name in asked} == asked


def test_small_batches_that_are_asked_for_leave_less_time_for_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "_time", lambda config, train, machine: (1e-5, 5e-3))
    sizes, model = {"embed_dim": 64, "num_layers": 2}, dataclasses.replace(MODERN, max_seq_len=100)
    seen = {}
    for batch_size in (1, 50):
        asked = {**sizes, "max_seq_len": 100, "batch_size": batch_size}
        made = make_plan(model, TRAIN, asked, text_tokens=10**9, val_tokens=10**5, seconds=1000, device=CPU)
        seen[batch_size] = float(made.why.split("for the ")[1].split(" million")[0])
    # 1,000 seconds at 1e-5 s for each token and 5e-3 s for each update.
    share = budget._TRAINING_SHARE
    assert seen[1] == pytest.approx(share * 1000 / (1e-5 + 5e-3 / 100) / 1e6, rel=0.02)
    assert seen[50] == pytest.approx(share * 1000 / (1e-5 + 5e-3 / 5000) / 1e6, rel=0.02)


def test_an_update_takes_no_longer_than_the_batch_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "_time", lambda config, train, machine: (1e-4, 1.0))
    made = plan(30, 10**6, embed_dim=64, num_layers=2)
    assert made["batch_size"] * made["max_seq_len"] == pytest.approx(1.0 / 1e-4, rel=0.01)
    assert plan(30, 1000, embed_dim=64, num_layers=2)["batch_size"] == 1000 // made["max_seq_len"]  # all that there are


def test_a_batch_larger_than_the_text_is_reckoned_with_as_the_text() -> None:
    sizes = {"embed_dim": 64, "num_layers": 2, "learning_rate": 0.01}
    larger, whole = plan(600, 20_000, batch_size=10**6, **sizes), plan(600, 20_000, batch_size=19_999 // 256, **sizes)
    assert larger["batch_size"] == 10**6
    assert larger["weight_decay"] == whole["weight_decay"]


@pytest.mark.parametrize(
    ("text_tokens", "told"),
    [
        (10**9, " % of the text is read"),
        (10**6, "times, with "),
        (10**3, "; more text would help more than more time"),
    ],
)
def test_the_reasons_say_how_much_of_the_text_is_read(text_tokens: int, told: str) -> None:
    made = make_plan(MODERN, TRAIN, {}, text_tokens=text_tokens, val_tokens=10**3, seconds=60, device=CPU)
    assert told in made.why
    assert ("more text" in made.why) == (text_tokens == 10**3)


@pytest.mark.parametrize(("number", "told"), [(0.0004, "0.0004"), (0.99, "1.0"), (99.6, "99.6"), (2800.0, "2,800.0")])
def test_numbers_in_the_reasons_are_short(number: float, told: str) -> None:
    assert budget._short(number) == told


def test_the_model_that_tells_threads_is_no_large_one(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    choose = budget.choose_machine

    def seen(train: TrainConfig, model: LanguageModel, *rest: Any, **more: Any) -> Any:
        sizes.append(model.config.num_layers)
        return choose(train, model, *rest, **more)

    monkeypatch.setattr(budget, "choose_machine", seen)
    plan(embed_dim=768)
    assert sizes == [3]  # of 1, 3, 6 and 12


def test_a_model_that_is_small_for_its_text_gets_no_dropout_and_less_weight_decay() -> None:
    assert budget.dropout_for(100, 1.0) == 0.0 < budget.dropout_for(100, 3.0) < budget.dropout_for(100, 10.0)
    assert budget.weight_decay_for(100, 1.0, 90, 0.01) < budget.weight_decay_for(100, 10.0, 90, 0.01)
