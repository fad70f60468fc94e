"""Laws of slm-evaluate: what it prints and how it ends; and of the yardsticks that it and slm-train print."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SMALL, make_text
from hypothesis import given
from hypothesis import strategies as st

import slm
from slm import ending as ending_module
from slm.cli import evaluate
from slm.cli.arguments import OK, USER_ERROR
from slm.display import Display, yardstick_lines
from slm.ending import _yardstick_seconds
from slm.metrics.speed import flops_per_token
from slm.metrics.yardsticks import FULL_SECONDS, Yardstick

pytestmark = pytest.mark.filterwarnings("ignore:only 12 steps", "ignore:the vocabulary of")
TEXT = make_text(4000)
LOUD = SMALL | {"quiet": False}
TITLE = "on the same text"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text and three runs; nobody changes them."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "text.txt").write_text(TEXT)
    np.save(folder / "ids.npy", np.arange(3000) % 7)
    slm.train(folder / "text.txt", model_dir=folder / "char", **SMALL)
    slm.train(folder / "text.txt", model_dir=folder / "bpe", **(SMALL | {"tokenizer": "bpe", "vocab_size": 300}))
    slm.train(folder / "ids.npy", model_dir=folder / "ids", **{k: v for k, v in SMALL.items() if k != "tokenizer"})
    return folder


@pytest.fixture(autouse=True)
def here(runs: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(runs)
    show = warnings.showwarning
    yield
    warnings.showwarning = show  # a command sets it for its process


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    """The lines that a command which ends well prints."""
    assert evaluate.main(arguments) == OK
    output = capsys.readouterr()
    assert output.err == ""
    return output.out.splitlines()


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that a command which cannot do its work prints; it exits with 2."""
    try:
        code = evaluate.main(arguments)
    except SystemExit as stop:
        code = stop.code
    assert code == USER_ERROR
    message = capsys.readouterr().err
    assert message.startswith("slm-evaluate: error: ")
    assert message.count("\n") == 1
    return message


def place_of_table(lines: list[str]) -> int:
    """Where the table of yardsticks begins."""
    return next(number for number, line in enumerate(lines) if line.startswith(TITLE))


def rows_of(lines: list[str]) -> dict[str, str]:
    """The rows of the table of numbers by their names."""
    begin = lines.index(next(line for line in lines if line.startswith("model ")))
    table = lines[begin : lines.index("", begin)]
    width = table[0].index(table[0].split()[1])
    return {line[:width].strip(): line[width:] for line in table}


def test_all_numbers_are_shown_with_their_errors_and_yardsticks(capsys: pytest.CaptureFixture[str]) -> None:
    lines = told(capsys, "--model_dir", "char", "--data", "text.txt")
    assert lines[0].endswith(" ...")  # what is done meanwhile
    rows, found = rows_of(lines), slm.evaluate("char", "text.txt")
    count = len(TEXT) // 1000
    assert found.bits_per_byte is not None
    accuracy, top5 = (tuple(100 * number for number in one) for one in (found.accuracy, found.top5_accuracy))
    assert rows == {
        "model": "char",
        "text": f"text.txt: {len(TEXT) - 1:,} tokens of {len(TEXT) - 1:,} bytes",
        "val_loss": "{:.4f} +- {:.4f} nats per token".format(*found.loss),
        "perplexity": "{:.2f} +- {:.2f}".format(*found.perplexity),
        "bits per byte": "{:.4f} +- {:.4f}".format(*found.bits_per_byte),
        "accuracy": "{:.2f} +- {:.2f} %".format(*accuracy),
        "top-5 accuracy": "{:.2f} +- {:.2f} %".format(*top5),
        "+-": f"standard errors, over {count} stretches of about {len(TEXT) / count:,.0f} bytes",
        "by context": ", ".join(
            f"{name}: {one.loss:.3f}"
            for name, one in zip(("1", "2", "3-4", "5-8", "9-16"), found.loss_by_position, strict=True)
        )
        + " (val_loss after so many tokens of the window)",
    }
    expected = yardstick_lines(found.yardsticks, found.as_yardstick)
    assert lines[place_of_table(lines) :] == [*expected, ""]
    heads = ("bits per byte", "val_loss", "perplexity", "accuracy", "top-5")
    assert all(head in expected[0] for head in heads)
    mine = next(line for line in expected if line.startswith("  this model"))
    numbers = [rows[name].split(" +- ")[0] for name in ("val_loss", "perplexity", "accuracy", "top-5 accuracy")]
    assert [cell for cell in mine.split()[3:] if cell != "%"] == numbers
    assert len(expected) == 1 + 5 + 1  # four yardsticks and the model


def test_the_folder_we_are_in_and_its_own_text_are_the_defaults(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("char")
    lines = told(capsys)
    assert rows_of(lines)["model"] == "."
    assert "text.txt (the last 10 % of the text): " in rows_of(lines)["text"]
    metrics = slm.load(".").metrics
    assert rows_of(lines)["val_loss"].startswith(f"{metrics['val_loss']:.4f}")
    assert rows_of(lines)["accuracy"].startswith(f"{100 * metrics['val_accuracy']:.2f}")


def test_strides_and_settings_of_the_text_reach_the_evaluation(capsys: pytest.CaptureFixture[str]) -> None:
    Path("two.jsonl").write_text("".join(json.dumps({"body": line}) + "\n" for line in TEXT.splitlines()[:40]))
    rows = rows_of(told(capsys, "--model-dir=char", "--stride=4", "--data=two.jsonl", "--text-field=body"))
    found = slm.evaluate("char", "two.jsonl", stride=4, text_field="body")
    assert rows["val_loss"].startswith(f"{found.loss.value:.4f}")
    assert rows["+-"] == "standard errors, over 40 documents"
    rows = rows_of(told(capsys, "--model_dir", "char", "--data", "text.txt", "--split_documents_on", "\n"))
    assert rows["+-"] == f"standard errors, over {len(TEXT.splitlines())} documents"


def test_too_little_text_for_errors_and_yardsticks_that_are_missing_are_told(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "short.txt").write_text(TEXT[:100])
    slm.train([TEXT], model_dir=tmp_path / "python", **SMALL)
    lines = told(capsys, "--model_dir", str(tmp_path / "python"), "--data", str(tmp_path / "short.txt"))
    rows = rows_of(lines)
    assert rows["+-"] == "standard errors, over one stretch of text: too few to tell any"
    assert not any("+-" in value or "nan" in value for value in rows.values())
    assert lines[-2] == (
        "no yardsticks, which learn from the training text: this run was trained on data given in Python, which a run "
        "does not store"
    )


def test_json_holds_the_same_numbers_and_nothing_else_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = told(capsys, "--model_dir", "char", "bpe", "--data", "text.txt", "--output", "json")
    content = json.loads(line, parse_constant=lambda name: pytest.fail(name))
    for name, one in zip(("char", "bpe"), content["evaluations"], strict=True):
        found = slm.evaluate(name, "text.txt")
        assert found.bits_per_byte is not None
        for key, estimate in {
            "val_loss": found.loss,
            "val_perplexity": found.perplexity,
            "val_bits_per_byte": found.bits_per_byte,
            "val_accuracy": found.accuracy,
            "val_top5_accuracy": found.top5_accuracy,
        }.items():
            assert one[key] == estimate._asdict()
        assert (one["model_dir"], one["text"]) == (name, "text.txt")
        assert (one["num_tokens"], one["num_bytes"]) == (found.num_tokens, found.num_bytes)
        assert one["standard_errors_over"] == found.units_told
        assert one["loss_by_position"] == [part._asdict() for part in found.loss_by_position]
        assert [part["name"] for part in one["yardsticks"]] == [part.name for part in found.yardsticks]
        assert one["yardsticks_missing"] is None
    (comparison,) = content["comparisons"]
    expected = slm.compare("char", "bpe", "text.txt")
    assert comparison["difference"] == expected.difference._asdict()
    assert (comparison["first"], comparison["second"], comparison["unit"]) == ("char", "bpe", "bits/byte")
    assert comparison["verdict"] == expected.verdict("char", "bpe")


def test_json_has_null_for_what_is_unknown(capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = told(capsys, "--model_dir", "ids", "--output", "json", "--quiet")
    one = json.loads(line, parse_constant=lambda name: pytest.fail(name))["evaluations"][0]
    assert one["val_bits_per_byte"] is None and one["num_bytes"] is None
    assert one["val_loss"]["standard_error"] is None
    assert {part["bits_per_byte"] for part in one["yardsticks"]} == {None}


def test_several_models_are_each_compared_with_the_first(capsys: pytest.CaptureFixture[str]) -> None:
    lines = told(capsys, "--model_dir", "char", "bpe", "char", "--data", "text.txt")
    assert [line.split()[1] for line in lines if line.startswith("model ")] == ["char", "bpe", "char"]
    assert lines[-2] == slm.compare("char", "bpe", "text.txt").verdict("char", "bpe")
    assert "is better than" in lines[-2]
    assert lines[-1].startswith("No difference between char and char can be told on this text: 0.0000 +- 0.0000")
    own = told(capsys, "--model_dir", "char", "bpe")
    assert own[-1] == slm.compare("char", "bpe").verdict("char", "bpe")


def test_quiet_shows_the_numbers_only(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--model_dir", "char", "--data", "text.txt")
    loud = told(capsys, *arguments)
    assert told(capsys, *arguments, "--quiet") == [line for line in loud if not line.endswith(" ...")]


MISTAKES = {
    ("--model_dir", "missing"): "missing/model.pt does not exist",
    ("--model_dir", "text.txt"): "text.txt",
    ("--model_dir", "gs:/bucket/run"): "gs:",
    ("--model_dir", "char", "--data", "missing.txt"): "no file or folder 'missing.txt'",
    ("--model_dir", "char", "--data", "dummy"): "'dummy' is random tokens",
    ("--model_dir", "char", "--data", "empty.txt"): "there is no text",
    ("--model_dir", "char", "--data", "a.txt"): "fewer than two tokens (1)",
    ("--model_dir", "char", "--data", "prepared"): "prepared with another tokenizer than this model's: name the text",
    ("--model_dir", "char", "--data", "prepared", "text.txt"): "prepared holds data that slm-prepare made",
    ("--model_dir", "char", "--data", "large.npy"): "holds ids from 0 to 2999, and the model's vocabulary has",
    ("--model_dir", "ids", "--data", "text.txt"): "it can be evaluated on token ids only (.npy or .bin files)",
    ("--model_dir", "ids", "char"): "name a text",
    ("--model_dir", "changed"): "has changed since this run was trained on it: name a text with data (--data)",
    ("--model_dir", "gone"): "is not there any more: name a text with data (--data)",
    ("--model_dir", "char", "--stride", "0"): "stride = 0: must be a whole number from 1",
    ("--model_dir", "char", "--stride", "17"): "stride = 17: must be at most 16",
    ("--model_dir", "char", "--stride", "x"): "--stride",
    ("--model_dir", "char", "--device", "tpu"): "device = 'tpu'",
    ("--model_dir", "char", "--output", "xml"): "--output",
    ("--model_dir", "char", "--strid", "3"): "Did you mean --stride?",
    ("--model_dir", "char", "--val_data", "text.txt"): "--val_data is not a flag",
}


@pytest.fixture(scope="module")
def mistaken(runs: Path) -> None:
    """The files and runs that mistakes are about."""
    (runs / "empty.txt").touch()
    (runs / "a.txt").write_text("a")
    np.save(runs / "large.npy", np.arange(3000))
    slm.prepare(runs / "text.txt", tokenizer="byte", out=runs / "prepared")
    for name in ("changed", "gone"):
        (runs / f"{name}.txt").write_text(TEXT)
        slm.train(runs / f"{name}.txt", model_dir=runs / name, **SMALL)
    (runs / "changed.txt").write_text(TEXT[1:])
    (runs / "gone.txt").unlink()


@pytest.mark.parametrize("arguments", MISTAKES, ids=" ".join)
def test_a_mistake_is_told_in_one_line(
    mistaken: None, arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert MISTAKES[arguments] in refused(capsys, *arguments)


def test_from_the_shell_it_ends_with_its_code_and_its_help_tells_of_its_flags() -> None:
    call = "import sys; from slm.cli.evaluate import main; sys.exit(main())"
    for arguments, code, out in (
        (("--model_dir", "char", "--data", "text.txt"), OK, "val_loss"),
        (("--model_dir", "char", "--stride", "0"), USER_ERROR, ""),
        (("--help",), OK, "--stride"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", call, *arguments],
            env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code, done.stderr
        assert out in done.stdout
        assert "Traceback" not in done.stderr
    flags = ("--model_dir", "--stride", "--output", "--data", "--text_field", "--split_documents_on", "--device")
    assert all(flag in done.stdout for flag in flags)


def yardstick(name: str, bits_per_byte: float | None, loss: float | None, told: str = "") -> Yardstick:
    return Yardstick(name, bits_per_byte, loss, told)


FOUND = [
    yardstick("uniform", 8.0, 5.5),
    yardstick("n-gram", 2.0, 1.4, "on 5 of 9 targets"),
    yardstick("unigram", 4.0, 2.8),
    yardstick("xz", 1.5, None),
    yardstick("entropy of the source", 1.2, None),
]


@pytest.mark.parametrize(
    ("mine", "place", "verdict"),
    [
        (1.3, 4, "better than the n-gram"),
        (1.9, 3, "better than the n-gram"),  # xz sees more than counts, and does not count
        (2.1, 2, "not better than the n-gram, which only counts"),
        (9.0, 0, "not better than the n-gram, which only counts"),
    ],
)
def test_the_worst_comes_first_and_the_best_that_counts_is_what_the_model_is_held_against(
    mine: float, place: int, verdict: str
) -> None:
    first, *rows, last = yardstick_lines(FOUND, Yardstick("this model", mine, 1.0, accuracy=0.5))
    assert first.split() == [*TITLE.split(), "bits", "per", "byte", "val_loss", "perplexity", "accuracy"]
    assert last == f"this model is {verdict}"
    order = ["uniform", "unigram", "n-gram", "xz", "entropy of the source"]
    order.insert(place, "this model")
    assert [row[2:23].strip() for row in rows] == order
    scores = [float(row[23:].split()[0]) for row in rows]
    assert scores == sorted([8, 4, 2, 1.5, 1.2, mine], reverse=True)
    assert [row for row in rows if row.endswith("   on 5 of 9 targets")] == [rows[order.index("n-gram")]]
    assert rows[order.index("uniform")].split() == ["uniform", "8.000", "5.5000", "244.69"]
    assert rows[order.index("this model")].split()[-3:] == ["2.72", "50.00", "%"]
    assert rows[order.index("xz")].split() == ["xz", "1.500"]
    assert not any(line.endswith(" ") for line in rows)


def test_where_no_bytes_are_known_nats_are_told_and_where_nothing_is_nothing() -> None:
    found = [yardstick(one.name, None, one.loss) for one in FOUND[:3]]
    model = Yardstick("this model", None, 1.0)
    lines = yardstick_lines(found, model)
    assert lines[0].split() == [*TITLE.split(), "val_loss", "perplexity"]
    assert lines[-1] == "this model is better than the n-gram"
    assert len(lines) == 6
    assert yardstick_lines([], model) == yardstick_lines(found, Yardstick("this model", 1.0, 1.0)) == []


def test_training_shows_the_yardsticks_once_with_its_summary(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []
    measure = ending_module.yardsticks

    def spy(*arguments: Any, **keys: Any) -> Any:
        asked.append(keys)
        return measure(*arguments, **keys)

    monkeypatch.setattr(ending_module, "yardsticks", spy)
    run = slm.train("text.txt", **LOUD)
    output = capsys.readouterr().out
    assert output.count(TITLE) == 1
    lines = output.splitlines()
    mine = ["this", "model", f"{run.metrics['val_bits_per_byte']:.3f}", f"{run.metrics['val_loss']:.4f}"]
    assert mine in [line.split()[:4] for line in lines]
    assert place_of_table(lines) > next(i for i, line in enumerate(lines) if line == "sample:")
    assert lines[-1].startswith("finished after step 12")
    assert asked[0]["seconds"] == _yardstick_seconds(run)
    slm.train("text.txt", **SMALL)
    slm.train("text.txt", should_stop=iter([False] * 4 + [True] * 9).__next__, **LOUD)
    slm.train("dummy", **LOUD)
    assert len(asked) == 1
    assert "on the same text" not in capsys.readouterr().out


@given(steps=st.integers(1, 10**6), minutes=st.none() | st.floats(0.5, 1440), width=st.sampled_from([16, 1024]))
def test_yardsticks_take_a_twentieth_of_the_run_at_most_and_the_same_for_a_repetition(
    steps: int, minutes: float | None, width: int
) -> None:
    model = slm.LanguageModel(slm.ModelConfig(vocab_size=50, embed_dim=width, num_layers=1))
    tokens = 4096 * steps
    run = slm.Run(model, None, {"tokens_seen": tokens, "elapsed_seconds": 1.0}, resolved={"max_minutes": minutes})
    later = slm.Run(model, None, {"tokens_seen": tokens, "elapsed_seconds": 9.0}, resolved={"max_minutes": minutes})
    seconds = 60 * minutes if minutes else flops_per_token(model.config) * tokens / 2e11
    assert _yardstick_seconds(run) == _yardstick_seconds(later) == min(0.05 * seconds, FULL_SECONDS)


def test_a_display_shows_no_codes_and_nothing_when_it_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    found = slm.evaluate("char", "text.txt")
    Display(quiet=True).evaluation("char", found)
    assert capsys.readouterr().out == ""
    Display(quiet=False).evaluation("char", found)
    assert capsys.readouterr().out.replace("\n", "").isprintable()


def test_a_model_below_all_others_is_told_so() -> None:
    last = yardstick_lines([yardstick("unigram", 9.0, 6.0), yardstick("uniform", 8.0, 5.5)], Yardstick("it", 8.5, 5.7))[
        -1
    ]
    assert last == "it is not better than the uniform, which knows nothing"
