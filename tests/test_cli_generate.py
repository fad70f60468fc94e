"""Laws of slm-generate: what it reads, what it writes and when, and how it ends."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from models import small_model

import slm
from slm import writing
from slm.cli import generate
from slm.cli.arguments import OK, USER_ERROR
from slm.data.tokenizer import char_tokenizer
from slm.run import Run
from slm.writing import Sample, samples

HOT = {"max_new_tokens": 20, "temperature": 2.0, "seed": 5}
HOT_FLAGS = [f"--{name}={value}" for name, value in HOT.items()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run of large random weights, which writes all sorts of letters."""
    tokenizer = char_tokenizer(["abcdefgh é.\n"])
    path = str(tmp_path_factory.mktemp("runs") / "run")
    Run(small_model(vocab_size=tokenizer.vocab_size, max_seq_len=40), tokenizer, {"step": 1}).save(path)
    return path


@pytest.fixture(autouse=True)
def _look_of_warnings() -> Iterator[None]:
    show = warnings.showwarning
    yield
    warnings.showwarning = show  # a command sets it for its process


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What a command which ends well prints."""
    assert generate.main(arguments) == OK
    output = capsys.readouterr()
    assert output.err == ""
    return output.out


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that a command which cannot do its work prints; it exits with 2."""
    try:
        code: Any = generate.main(arguments)
    except SystemExit as stop:
        code = stop.code
    output = capsys.readouterr()
    assert code == USER_ERROR
    assert output.out == ""
    assert output.err.startswith("slm-generate: error: ")
    assert output.err.count("\n") == 1
    return output.err


class Terminal(io.StringIO):
    """Somebody who types."""

    def isatty(self) -> bool:
        return True


# One prompt


@pytest.mark.parametrize("prompt", ["", "ab é", "-", "a\nb"])
def test_a_prompt_and_its_continuation_are_what_run_generate_gives(
    folder: str, prompt: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert told(capsys, f"--model_dir={folder}", f"--prompt={prompt}", *HOT_FLAGS) == (
        slm.load(folder).generate(prompt, **HOT) + "\n"
    )


@pytest.mark.parametrize(
    ("flags", "settings"),
    [
        (["--top_k", "3"], {"top_k": 3}),
        (["--top-k=all"], {"top_k": None}),
        (["--top_p", ".5", "--min-p", "0.1"], {"top_p": 0.5, "min_p": 0.1}),
        (["--repetition_penalty=1.5"], {"repetition_penalty": 1.5}),
        (["--stop", "a", "b c"], {"stop": ["a", "b c"]}),
        (["--temperature", "0"], {"temperature": 0}),
    ],
    ids=str,
)
def test_flags_are_the_settings_of_generation(
    folder: str, flags: list[str], settings: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    written = told(capsys, "--model_dir", folder, "--prompt", "ab", *HOT_FLAGS, *flags)
    assert written == slm.load(folder).generate("ab", **(HOT | settings)) + "\n"


def test_a_piece_is_on_the_screen_before_the_next_is_asked_for(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Screen(io.StringIO):
        shown = ""

        def flush(self) -> None:
            self.shown = self.getvalue()

    screen = Screen()

    def pieces(run: Run, prompt: str, **_: Any) -> Iterator[str]:
        assert screen.shown == "ab"
        yield "c"
        assert screen.shown == "abc"
        yield "d e"
        assert screen.shown == "abcd e"

    monkeypatch.setattr(writing, "stream", pieces)
    monkeypatch.setattr(sys, "stdout", screen)
    assert generate.main(["--model_dir", folder, "--prompt", "ab"]) == OK
    assert screen.getvalue() == "abcd e\n"


@pytest.mark.parametrize("place", ["file", "url"])
def test_a_prompt_may_lie_in_a_file_or_at_a_url(
    folder: str, place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompt = "ab é\ncd\n"
    path = str(tmp_path / "prompt.txt") if place == "file" else "memory://prompts/prompt.txt"
    with fsspec.open(path, "wb") as file:
        file.write(prompt.encode())
    assert told(capsys, "--model_dir", folder, "--prompt_file", path, *HOT_FLAGS) == (
        slm.load(folder).generate(prompt, **HOT) + "\n"
    )


def test_a_prompt_too_long_is_warned_of_and_goes_on(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert generate.main(["--model_dir", folder, "--prompt", "ab" * 30, *HOT_FLAGS]) == OK
    output = capsys.readouterr()
    assert output.err.startswith("warning: the prompt has 60 tokens, and this model looks at 40 at most")
    assert output.out.startswith("ab" * 30)


# Several samples, and JSON


def test_several_samples_are_shown_one_below_the_other(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    expected = samples(slm.load(folder), "ab", num_samples=3, **HOT)
    assert len({sample.text for sample in expected}) == 3
    assert told(capsys, "--model_dir", folder, "--prompt", "ab", "--num_samples", "3", *HOT_FLAGS) == "".join(
        f"--- {number} of 3\nab{sample.text}\n" for number, sample in enumerate(expected, 1)
    )


@pytest.mark.parametrize("num_samples", [1, 3])
def test_json_has_a_line_for_each_sample_with_all_that_makes_it_again(
    folder: str, num_samples: int, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--model_dir", folder, "--prompt", "é\n", "--num_samples", str(num_samples), "--output", "json"]
    made = [Sample(**json.loads(line)) for line in told(capsys, *flags, *HOT_FLAGS[:2]).splitlines()]
    assert len(made) == num_samples
    run = slm.load(folder)
    for row, sample in enumerate(made):
        again = {**HOT, "seed": sample.seed, "first_row": sample.row, "log_probabilities": True}
        (alone,) = samples(run, sample.prompt, **again)
        assert sample.row == row
        assert len(sample.log_probabilities or []) == len(sample.tokens)
        assert dataclasses.replace(alone, log_probabilities=sample.log_probabilities) == sample
        assert alone.log_probabilities == pytest.approx(sample.log_probabilities, abs=1e-5)
    assert "é" in told(capsys, *flags, *HOT_FLAGS)


# Lines of the input


@pytest.mark.parametrize("end", ["", "\n"])
def test_without_a_prompt_each_line_of_the_input_is_one(
    folder: str, end: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, lines = slm.load(folder), ["ab", "", "é cd"]
    for flags, expected in (
        ([], [run.generate(line, **HOT) for line in lines]),
        (["--output=json"], None),
    ):
        monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines) + end))
        output = told(capsys, "--model_dir", folder, *HOT_FLAGS, *flags)
        if expected is None:
            assert [json.loads(line)["prompt"] for line in output.splitlines()] == lines
        else:
            assert output == "".join(f"{text}\n" for text in expected)
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert told(capsys, "--model_dir", folder) == ""


def test_who_types_is_asked_for_each_line(
    folder: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal("ab\ncd\n"))
    first, second = (slm.load(folder).generate(prompt, **HOT) for prompt in ("ab", "cd"))
    assert told(capsys, "--model_dir", folder, *HOT_FLAGS) == f"> {first}\n> {second}\n> \n"


@pytest.mark.parametrize("typed", [True, False])
def test_ctrl_c_ends_the_text_for_who_types_and_all_in_a_pipe(
    folder: str, typed: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def pieces(run: Run, prompt: str, **_: Any) -> Iterator[str]:
        yield "..."
        if prompt == "ab":
            raise KeyboardInterrupt
        yield " done"

    monkeypatch.setattr(writing, "stream", pieces)
    monkeypatch.setattr(sys, "stdin", (Terminal if typed else io.StringIO)("ab\ncd\n"))
    assert generate.main(["--model_dir", folder]) == (OK if typed else 130)
    output = capsys.readouterr()
    assert output.out == ("> ab...\n> cd... done\n> \n" if typed else "ab...")
    assert output.err == ""


def test_whatever_a_pipe_brings_is_gone_on_from(folder: str) -> None:
    call = "import sys; from slm.cli.generate import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", call, "--model_dir", folder, *HOT_FLAGS],
        input=b"ab\r\n\xff\xc3\n\xc3\xa9",
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUTF8": "1"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    output, run = done.stdout.decode(), slm.load(folder)
    assert output.startswith(run.generate("ab", **HOT) + "\n")
    assert output.endswith(run.generate("é", **HOT) + "\n")
    assert done.stderr == b""


# What is refused


def test_every_mistake_gets_one_line_and_exit_code_2(
    folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = str(tmp_path / "missing.txt")
    for arguments, words in {
        ("--prompt", "a", "--prompt_file", "b"): "--prompt and --prompt_file both name the prompt: give one of them",
        ("--prompt_file", missing): "missing.txt",
        ("--prompt_file", ""): "empty",
        ("--prompt_file", "gs:/bucket/prompt.txt"): "two slashes",
        ("--prompt", "a", "--model_dir", missing): "missing.txt",
        ("--prompt", "a", "--num_samples", "0"): "num_samples = 0: must be at least 1",
        ("--num_samples", "-1"): "num_samples = -1: must be at least 1",
        ("--prompt", "a", "--num_samples", "many"): "--num_samples",
        ("--prompt", "a", "--temperature", "-1"): "temperature = -1.0: must be 0 or above",
        ("--prompt", "a", "--temperature", "nan"): "temperature = nan: must be a finite number",
        ("--prompt", "a", "--temperature", "warm"): "--temperature: invalid float value: 'warm'",
        ("--prompt", "a", "--top_k", "0"): "top_k = 0: must be at least 1",
        ("--prompt", "a", "--top_k", "some"): "--top_k: invalid int value: 'some'",
        ("--prompt", "a", "--top_p", "0"): "top_p = 0.0: must be above 0 and at most 1",
        ("--prompt", "a", "--top_p", "1.5"): "top_p = 1.5: must be above 0 and at most 1",
        ("--prompt", "a", "--min_p", "2"): "min_p = 2.0: must be 0 to 1",
        ("--prompt", "a", "--repetition_penalty", "0"): "repetition_penalty = 0.0: must be above 0",
        ("--prompt", "a", "--max_new_tokens", "-1"): "max_new_tokens = -1: must be 0 or above",
        ("--prompt", "a", "--seed", "-1"): "seed = -1: must be 0 or above",
        ("--prompt", "a", "--stop", ""): "stop = '': an empty text ends everything at once. Leave it out",
        ("--prompt", "a", "--output", "xml"): "--output",
        ("--prompt", "a", "--temprature", "1"): "Did you mean --temperature?",
        ("--prompt", "\udcff"): "surrogate",
        ("ab",): "every value follows a flag",
    }.items():
        if "--model_dir" not in arguments:
            arguments = ("--model_dir", folder, *arguments)
        assert words in refused(capsys, *arguments), arguments


def test_a_model_without_a_tokenizer_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Run(small_model(), None, {"step": 1}).save(tmp_path / "run")
    for flags in ([], ["--num_samples", "2"]):
        assert "has no tokenizer" in refused(capsys, "--model_dir", str(tmp_path / "run"), "--prompt", "a", *flags)


def test_help_shows_every_setting_and_loads_no_torch() -> None:
    program = (
        "import sys\n"
        "from slm.cli.generate import main\n"
        "try:\n    main(['--help'])\n"
        "finally:\n    print([name for name in ('torch', 'numpy', 'tokenizers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    *help, loaded = done.stdout.splitlines()
    assert loaded == "[]"
    words = " ".join(" ".join(help).split())
    for field in dataclasses.fields(slm.Sampling):
        assert f"--{field.name}" in words
        assert field.metadata["help"] in words
    assert "--top_k INT" in words
    assert max(map(len, help)) <= 110
