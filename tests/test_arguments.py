"""Laws of the flags: made from the settings, `-` and `_` alike, and every mistake told in one line."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slm import __version__
from slm.cli import generate, prepare, train
from slm.config import FIELDS, kind_of

PARSER = train.make_parser(everything=True)
EXAMPLES: dict[str, dict[str, Any]] = {
    "int": {"7": 7, "0": 0, "-3": -3},
    "float": {"1e-3": 1e-3, "2": 2.0, ".5": 0.5, "-0.25": -0.25},
    "str": {"my-file_name.txt": "my-file_name.txt", "gs://a-b/c": "gs://a-b/c", "": "", "a=b": "a=b", "é 漢": "é 漢"},
    "strs": {"my-file_name.txt": ["my-file_name.txt"], "gs://a-b/*.gz": ["gs://a-b/*.gz"], "": [""], "a=b": ["a=b"]},
}
VALUED = [name for name, field in FIELDS.items() if kind_of(field) != "bool"]
SWITCHES = [name for name, field in FIELDS.items() if kind_of(field) == "bool"]


def examples_of(name: str) -> dict[str, Any]:
    """Values of a flag as typed, and what they mean."""
    choices = FIELDS[name].metadata["choices"]
    return dict(zip(choices, choices, strict=True)) if choices else EXAMPLES[kind_of(FIELDS[name])]


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that a mistake prints, after checking that it exits with 2."""
    with pytest.raises(SystemExit) as caught:
        PARSER.parse(arguments)
    assert caught.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("slm-train: error: ")
    assert printed.err.count("\n") == 1
    return printed.err


def shown(capsys: pytest.CaptureFixture[str], argument: str) -> str:
    """What a flag that prints and ends puts on standard output."""
    with pytest.raises(SystemExit) as caught:
        train.main([argument])
    assert caught.value.code == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    return re.sub(r"\x1b\[[0-9;]*m", "", printed.out)


def flags_in(help: str) -> set[str]:
    """The flags that a help text explains."""
    return set(re.findall(r"^  (?:-\w, )?--(\w+)", help, flags=re.MULTILINE))


def test_no_arguments_set_nothing() -> None:
    assert PARSER.parse([]) == {}


@settings(deadline=None, max_examples=100)
@given(data=st.data())
def test_only_set_keys_come_back_however_flags_are_spelled(data: st.DataObject) -> None:
    expected: dict[str, Any] = {}
    arguments: list[str] = []
    for name in data.draw(st.lists(st.sampled_from(sorted(FIELDS)), unique=True, max_size=8)):
        negated = data.draw(st.booleans())
        spelled = f"no_{name}" if name in SWITCHES and negated else name
        flag = "--" + "".join(data.draw(st.sampled_from("-_")) if letter == "_" else letter for letter in spelled)
        if name in SWITCHES:
            arguments.append(flag)
            expected[name] = not negated
        else:
            typed, expected[name] = data.draw(st.sampled_from(sorted(examples_of(name).items())))
            arguments += [f"{flag}={typed}"] if data.draw(st.booleans()) else [flag, typed]
    got = PARSER.parse(arguments)
    assert got == expected
    assert {name: type(value) for name, value in got.items()} == {name: type(v) for name, v in expected.items()}


@pytest.mark.parametrize("name", VALUED)
def test_dashes_and_underscores_in_a_flag_are_alike(name: str) -> None:
    for typed, meant in examples_of(name).items():
        for flag in (name, name.replace("_", "-")):
            assert PARSER.parse([f"--{flag}", typed]) == {name: meant}
            assert PARSER.parse([f"--{flag}={typed}"]) == {name: meant}


@pytest.mark.parametrize("value", ["my-own-file.txt", "--looks-like-a-flag", "a=b-c", "-", "gs://my-bucket/a-b_c"])
def test_dashes_in_a_value_are_left_alone(value: str) -> None:
    assert PARSER.parse([f"--model-dir={value}"]) == {"model_dir": value}
    if not value.startswith("--"):
        assert PARSER.parse(["--model-dir", value]) == {"model_dir": value}


@pytest.mark.parametrize("name", SWITCHES)
def test_a_switch_turns_on_and_off(name: str) -> None:
    for spelled in (name, name.replace("_", "-")):
        assert PARSER.parse([f"--{spelled}"]) == {name: True}
        assert PARSER.parse([f"--no_{spelled}"]) == {name: False}
        assert PARSER.parse([f"--no-{spelled}"]) == {name: False}


def test_of_a_flag_given_twice_the_last_counts() -> None:
    assert PARSER.parse(["--bias", "--no_bias", "--epochs", "2", "--epochs=3"]) == {"bias": False, "epochs": 3}
    assert PARSER.parse(["--data", "a", "b", "--data=c"]) == {"data": ["c"]}


@pytest.mark.parametrize("name", [name for name in VALUED if kind_of(FIELDS[name]) == "strs"])
@settings(deadline=None, max_examples=50)
@given(
    values=st.lists(st.text(st.characters(codec="utf-8")).filter(lambda v: not v.startswith("-")), min_size=1),
    before=st.booleans(),
)
def test_a_flag_that_takes_several_values_takes_all_up_to_the_next_flag(
    name: str, values: list[str], before: bool
) -> None:
    other, several = ["--epochs", "3"], [f"--{name}", *values]
    assert PARSER.parse([*other, *several] if before else [*several, *other]) == {name: values, "epochs": 3}


@pytest.mark.parametrize(
    ("arguments", "nearest"),
    [
        (["--learning_rat", "3"], "--learning_rate"),
        (["--learning-rat=3"], "--learning_rate"),
        (["--embed_dims", "3"], "--embed_dim"),
        (["--epoch", "3"], "--epochs"),
        (["--no_bais"], "--no_bias"),
        (["--max-sequence-len=8"], "--max_seq_len"),
        (["-epochs", "3"], "--epochs"),
        (["--epochs", "3", "--overwirte"], "--overwrite"),
        (["--help_al"], "--help_all"),
    ],
)
def test_a_mistyped_flag_names_itself_and_the_nearest(
    capsys: pytest.CaptureFixture[str], arguments: list[str], nearest: str
) -> None:
    message = refusal(capsys, *arguments)
    mistyped = next(a for a in arguments if a.startswith("-") and a != "--epochs").split("=")[0]
    assert (
        f"{'--' + mistyped[2:].replace('-', '_') if mistyped.startswith('--') else mistyped} is not a flag" in message
    )
    assert f"Did you mean {nearest}?" in message


@pytest.mark.parametrize("abbreviation", ["--learning", "--embed", "--e", "--dat", "--mod=x", "--vers"])
def test_abbreviations_are_refused(capsys: pytest.CaptureFixture[str], abbreviation: str) -> None:
    assert "is not a flag" in refusal(capsys, abbreviation)


@pytest.mark.parametrize("name", [name for name in VALUED if kind_of(FIELDS[name]) in ("int", "float")])
@pytest.mark.parametrize("value", ["many", "", "1,5", "0x10", "1 2"])
def test_a_value_of_the_wrong_type_is_refused_by_name(
    capsys: pytest.CaptureFixture[str], name: str, value: str
) -> None:
    message = refusal(capsys, f"--{name}={value}")
    assert f"--{name}" in message
    assert repr(value) in message


@pytest.mark.parametrize("name", [name for name in VALUED if kind_of(FIELDS[name]) == "int"])
def test_fractions_are_refused_where_a_count_is_asked_for(capsys: pytest.CaptureFixture[str], name: str) -> None:
    assert "'1.5'" in refusal(capsys, f"--{name}=1.5")


@pytest.mark.parametrize("name", [name for name in VALUED if FIELDS[name].metadata["choices"]])
def test_a_value_outside_the_choices_is_refused_with_the_choices(capsys: pytest.CaptureFixture[str], name: str) -> None:
    message = refusal(capsys, f"--{name}", "sideways")
    assert all(choice in message for choice in FIELDS[name].metadata["choices"])


@pytest.mark.parametrize("name", VALUED)
def test_a_flag_without_its_value_is_refused(capsys: pytest.CaptureFixture[str], name: str) -> None:
    assert f"--{name}" in refusal(capsys, f"--{name}")


@pytest.mark.parametrize("name", SWITCHES)
def test_a_switch_takes_no_value(capsys: pytest.CaptureFixture[str], name: str) -> None:
    assert f"--{name}" in refusal(capsys, f"--{name}=true")


def test_a_value_without_a_flag_is_told_how_to_pass_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert "'my.txt' is not understood" in (message := refusal(capsys, "my.txt"))
    assert "--data my.txt" in message


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--dropout", "1.5"], "dropout = 1.5: must be"),
        (["--embed_dim=10", "--num_heads=3"], "Try embed_dim = 9 or 12"),
        (["--learning-rate", "nan"], "learning_rate = nan"),
        (["--seed", "-1"], "seed = -1"),
        (["--data", "no/such/file.txt"], "no/such/file.txt"),
        (["--config", "no/such.toml"], "no/such.toml"),
        (["--repeat", "no/such/run"], "no/such/run"),
        (["--data", "gs:/bucket/text.txt"], "two slashes"),
        (["--config", ""], "empty"),
    ],
)
def test_a_bad_value_is_told_in_one_line_and_ends_with_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    assert train.main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("slm-train: error: ")
    assert told in printed.err
    assert printed.err.count("\n") == 1


def test_help_shows_about_twenty_everyday_flags(capsys: pytest.CaptureFixture[str]) -> None:
    flags = flags_in(shown(capsys, "--help"))
    everyday = {name for name, field in FIELDS.items() if field.metadata["everyday"]}
    assert flags == everyday | {"help", "help_all", "version"}
    assert 15 <= len(everyday) <= 25


@pytest.mark.parametrize("flag", ["--help_all", "--help-all"])
def test_help_all_shows_every_flag_with_its_help(capsys: pytest.CaptureFixture[str], flag: str) -> None:
    text = shown(capsys, flag)
    assert flags_in(text) >= set(FIELDS)
    words = "".join(text.split())  # lines break anywhere, also after a hyphen
    for name, field in FIELDS.items():
        assert "".join(field.metadata["help"].split()) in words, name


def test_help_tells_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    text = " ".join(shown(capsys, "--help_all").split())
    assert "(0.001)" in text
    assert "(10000)" in text
    assert "--no_bias turns it off" in text
    assert "None)" not in text


def test_help_shows_no_line_wider_than_a_page(capsys: pytest.CaptureFixture[str]) -> None:
    assert max(map(len, shown(capsys, "--help_all").splitlines())) <= 110


def test_version_prints_the_name_and_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(capsys, "--version") == f"slm {__version__}\n"


def test_the_other_command_reads_flags_the_same_way(capsys: pytest.CaptureFixture[str]) -> None:
    parser = generate.make_parser()
    assert parser.parse(["--max-new-tokens=3", "--top_k", "5"]) == {"max_new_tokens": 3, "top_k": 5}
    with pytest.raises(SystemExit) as caught:
        parser.parse(["--temprature", "1"])
    assert caught.value.code == 2
    assert "Did you mean --temperature?" in capsys.readouterr().err


def test_preparing_takes_every_setting_that_decides_the_tokens_as_training_does() -> None:
    names = [name for name, field in FIELDS.items() if field.metadata["group"] == "data" and name in VALUED]
    for name in [*names, "vocab_size"]:
        for typed, meant in examples_of(name).items():
            assert prepare.make_parser().parse([f"--{name.replace('_', '-')}", typed]) == {name: meant}


@pytest.mark.parametrize("arguments", [[], ["--quiet"], ["--data", "a", "--list"], ["--list", "--clean"]], ids=str)
def test_preparing_does_one_thing_at_a_time(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        prepare.main(arguments)
    assert caught.value.code == 2
    assert "give one of --data (what to prepare), --list and --clean" in capsys.readouterr().err
