"""Laws of slm.metrics.translations: sacrebleu's own numbers, and words in place of them where it is missing."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

import pytest
import sacrebleu

from slm.metrics.translations import MISSING, TextScores, score_texts

REFERENCES = [
    "Der Hund läuft schnell über die Wiese.",
    "Eine Frau kocht in der Küche, sagt er.",
    "Zwei Kinder spielen im Garten mit dem Ball.",
]
WRITTEN = [
    "Der Hund läuft schnell über die Straße.",
    "eine Frau kocht in der Küche, sagt er .",
    "Zwei Kinder spielen im Garten mit dem Ball.",
]


def test_scores_are_those_of_sacrebleu_with_its_defaults() -> None:
    found = score_texts(WRITTEN, REFERENCES)
    assert found.bleu == sacrebleu.corpus_bleu(WRITTEN, [REFERENCES]).score
    assert found.chrf == sacrebleu.corpus_chrf(WRITTEN, [REFERENCES]).score
    assert (found.num_examples, found.exact_match, found.missing) == (3, 1 / 3, "")
    assert found.bleu != sacrebleu.corpus_bleu(WRITTEN, [REFERENCES], lowercase=True).score
    assert found.bleu != sacrebleu.corpus_bleu(WRITTEN, [REFERENCES], tokenize="none").score


def test_written_texts_and_references_are_no_equals() -> None:
    short, long = ["A dog runs over the grass"], ["A dog runs over the grass and barks at a cat"]
    assert score_texts(short, long).bleu != score_texts(long, short).bleu


def test_the_signature_tells_how_both_scores_were_counted() -> None:
    bleu, chrf = score_texts(WRITTEN, REFERENCES).signature.split("; ")
    assert bleu == f"BLEU|nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:{sacrebleu.__version__}"
    assert chrf.startswith("chrF2|nrefs:1|case:mixed|")


def test_what_is_right_scores_100_and_what_is_wrong_0() -> None:
    right = score_texts([*REFERENCES, *WRITTEN], [*REFERENCES, *WRITTEN])
    assert (right.exact_match, right.bleu, right.chrf) == (1.0, 100.0, 100.0)
    wrong = score_texts(["xyz"] * 3, ["abc"] * 3)
    assert (wrong.exact_match, wrong.bleu, wrong.chrf) == (0.0, 0.0, 0.0)


def test_white_space_at_the_ends_does_not_count() -> None:
    assert score_texts([" a b\n", "a  b", "A b"], ["a b", "a b", "a b"]).exact_match == 1 / 3


@pytest.mark.parametrize("texts", [([""], [""]), (["", "a b"], ["a", ""]), (["a\nb", "\n"], ["a\nb", "x"])])
def test_empty_texts_and_line_ends_are_texts(texts: tuple[list[str], list[str]]) -> None:
    found = score_texts(*texts)
    assert found.bleu is not None and 0 <= found.bleu <= 100
    assert found.num_examples == len(texts[0])


def test_scores_of_nothing_are_0() -> None:
    found = score_texts([], [])
    assert (found.num_examples, found.exact_match, found.bleu, found.chrf) == (0, 0.0, 0.0, 0.0)


def test_texts_in_words_are_no_reason_to_write_on_the_screen(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """sacrebleu has a warning for them, which it gives on its own after 100 texts."""
    texts = ["The dog runs over the grass ."] * 200
    assert score_texts(texts, texts).bleu == 100.0
    assert caplog.records == []
    assert capfd.readouterr() == ("", "")
    sacrebleu.corpus_bleu(texts, [texts])
    assert caplog.records != []


@pytest.mark.parametrize("texts", [(WRITTEN, REFERENCES), ([], [])])
def test_without_sacrebleu_its_scores_are_none_and_the_command_is_told(
    monkeypatch: pytest.MonkeyPatch, texts: tuple[Sequence[str], Sequence[str]]
) -> None:
    whole = score_texts(*texts)
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    found = score_texts(*texts)
    assert found == TextScores(whole.num_examples, whole.exact_match, None, None, MISSING)
    assert "pip install sacrebleu" in MISSING


@pytest.mark.parametrize("has_sacrebleu", [True, False])
def test_a_record_is_what_json_can_hold(monkeypatch: pytest.MonkeyPatch, has_sacrebleu: bool) -> None:
    if not has_sacrebleu:
        monkeypatch.setitem(sys.modules, "sacrebleu", None)
    found = score_texts(WRITTEN, REFERENCES)
    assert TextScores(**json.loads(json.dumps(found.as_record(), allow_nan=False))) == found


def test_lists_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="2 texts for 1 references"):
        score_texts(["a", "b"], ["a"])
