"""How near written texts come to the texts that they should be: exact match, BLEU and chrF."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

MISSING = "BLEU and chrF need the package sacrebleu: pip install sacrebleu"


@dataclass(frozen=True)
class TextScores:
    """How near texts come to their references, all texts together.

    BLEU: Papineni et al., "BLEU: a method for automatic evaluation of machine translation" (2002). chrF: Popovic,
    "chrF: character n-gram F-score for automatic MT evaluation" (2015), with recall counted twice (chrF2).
    """

    num_examples: int
    exact_match: float  # 0-1; white space at the ends does not count
    bleu: float | None  # 0-100; None without sacrebleu
    chrf: float | None  # 0-100; None without sacrebleu
    missing: str = ""  # what has to be installed for the scores that are None
    signature: str = ""  # sacrebleu's word on how both were counted: to be told with them

    def as_record(self) -> dict[str, Any]:
        """The scores as what JSON can hold."""
        return asdict(self)


def score_texts(written: Sequence[str], references: Sequence[str]) -> TextScores:
    """The scores of texts against one reference each; BLEU and chrF as sacrebleu counts them when told nothing else.

    Of no texts, each score is 0. Raises ValueError for lists of different lengths.
    """
    if len(written) != len(references):
        raise ValueError(f"{len(written):,} texts for {len(references):,} references: must be as many.")
    pairs = zip(written, references, strict=True)
    exact_match = sum(text.strip() == reference.strip() for text, reference in pairs) / max(len(written), 1)
    try:
        from sacrebleu import BLEU, CHRF
    except ImportError:
        return TextScores(len(written), exact_match, None, None, MISSING)
    if not written:
        return TextScores(0, exact_match, 0.0, 0.0)
    # Texts that look as if they were split into words already are scored the same with force: it only keeps sacrebleu
    # from saying so on the screen, which is not its own.
    metrics = BLEU(force=True), CHRF()
    found = [metric.corpus_score(list(written), [list(references)]) for metric in metrics]
    signature = "; ".join(f"{one.name}|{metric.get_signature()}" for one, metric in zip(found, metrics, strict=True))
    bleu, chrf = (min(float(one.score), 100.0) for one in found)  # rounding may have made it larger
    return TextScores(len(written), exact_match, bleu, chrf, "", signature)
