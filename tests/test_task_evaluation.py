"""Laws of how a task's scores are told beside those of trivial predictors."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys

import pytest

from slm.data.examples import Examples
from slm.metrics.labels import score_labels
from slm.metrics.task_evaluation import THIS_MODEL, Beside, Example, TaskEvaluation, metrics_of, ranked
from slm.metrics.translations import TextScores
from slm.task_scores import _part, _shown


def evaluation(labels: int = 2, times: int = 100, **others: object) -> TaskEvaluation:
    names = [f"label {number:02}" for number in range(labels)]
    scores = score_labels([0, 1, 1, 0] * times, [0, 1, 0, 0] * times, names)
    return TaskEvaluation("classification", "some file", 4 * times, scores, **others)  # type: ignore[arg-type]


def test_the_table_ranks_the_model_among_the_yardsticks_and_tells_who_is_better() -> None:
    metrics = metrics_of(evaluation().scores)
    better, worse = (
        Beside("better", {"accuracy": 0.9, "macro_f1": 0.9}),
        Beside("worse", {"accuracy": 0.5, "macro_f1": 0.2}),
    )
    assert [one.name for one in ranked(metrics, [better, worse])] == ["worse", THIS_MODEL, "better"]
    told = evaluation(yardsticks=[worse, better]).lines()
    assert f"{THIS_MODEL} is not better than the best yardstick, better" in told
    assert f"{THIS_MODEL} is better than the best yardstick, worse" in evaluation(yardsticks=[worse]).lines()


def test_a_difference_that_few_examples_cannot_tell_is_told_as_chance() -> None:
    told = f"{THIS_MODEL} is about as good as the best yardstick, other: the difference may be chance"
    for macro_f1 in (0.3, 0.9):
        other = Beside("other", {"accuracy": macro_f1, "macro_f1": macro_f1})
        assert told in evaluation(times=2, yardsticks=[other]).lines()
        assert told not in evaluation(times=100, yardsticks=[other]).lines()


def test_as_good_as_a_yardstick_is_not_better() -> None:
    same = Beside("same", metrics_of(evaluation().scores))
    assert f"{THIS_MODEL} is not better than the best yardstick, same" in evaluation(yardsticks=[same]).lines()


def test_without_yardsticks_there_is_no_verdict() -> None:
    assert not [line for line in evaluation().lines() if "better" in line]


def test_each_label_has_its_line_unless_there_are_very_many() -> None:
    assert sum("label 0" in line for line in evaluation().lines()) == 2
    many = evaluation(31)
    assert not [line for line in many.lines() if "label 0" in line]
    assert many.as_record()["scores"] == {}
    assert evaluation(30).as_record()["scores"] != {}


def test_texts_are_told_by_what_could_be_measured() -> None:
    scores = TextScores(3, 0.5, None, None, "BLEU and chrF need sacrebleu", "")
    found = TaskEvaluation("pairs", "a file", 3, scores, missing=("BLEU and chrF need sacrebleu",))
    assert found.metrics == {"exact_match": 0.5}
    assert "50.00 %" in str(found) and "BLEU and chrF need sacrebleu" in str(found)


def test_a_record_is_plain_values() -> None:
    found = evaluation(
        yardsticks=[Beside("one", {"accuracy": 0.5, "macro_f1": 0.4})], examples=[Example("a", "b", "c")]
    )
    record = found.as_record()
    assert json.loads(json.dumps(record)) == record
    assert record["examples"] == [{"given": "a", "expected": "b", "answered": "c"}]


@pytest.mark.parametrize("size", [1, 9, 10, 11, 1000])
def test_a_part_is_spread_evenly_over_the_examples(size: int) -> None:
    texts = [str(number) for number in range(size)]
    part = _part(Examples("name", texts, texts, (), ""), 10)
    assert part.inputs == part.outputs
    assert len(part.inputs) == min(size, 10)
    places = list(map(int, part.inputs))
    steps = [b - a for a, b in itertools.pairwise(places)]
    assert places[0] == 0 and (not steps or max(steps) - min(steps) <= 1)


def test_right_and_wrong_answers_are_shown() -> None:
    texts = [str(number) for number in range(100)]
    answered = [text if int(text) % 10 else "wrong" for text in texts]
    shown = _shown(Examples("name", texts, texts, (), ""), answered)
    assert [one.is_right for one in shown] == [True] * 4 + [False] * 4
    all_right = _shown(Examples("name", texts, texts, (), ""), texts)
    assert [one.is_right for one in all_right] == [True] * 8


@pytest.mark.parametrize("package", ["sacrebleu", "sklearn"])
def test_training_a_task_needs_no_extra(package: str) -> None:
    """In a process of its own, where the package cannot be imported."""
    task = "pairs" if package == "sacrebleu" else "classification"
    code = f"""
import sys
sys.modules[{package!r}] = None
import slm
data = [(f"a {{n}}", "even" if n % 2 else "odd") for n in range(40)]
run = slm.train(data, task={task!r}, max_steps=2, embed_dim=16, num_heads=2, num_layers=1, hidden_dim=16, device="cpu",
                precision="fp32", threads=1, tokenizer="char")
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert f"pip install {'sacrebleu' if package == 'sacrebleu' else 'scikit-learn'}" in done.stdout
