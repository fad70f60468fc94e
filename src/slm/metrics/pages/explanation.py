"""The page that shows what a model made of a text: surprise, each layer's guess, and where attention looked.

Shapes: L layers, H heads, T tokens.
"""

from __future__ import annotations

import base64
import math
import struct
import unicodedata
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from slm.metrics.explain import Explanation, Piece
from slm.metrics.pages.page import details, escaped, fragment, page, table, tiles
from slm.metrics.pages.seeing import SCRIPT, STYLE

MOST_MAPS = 512
_MOST_LAYERS = 32  # of the lens, beside the embeddings
_OPEN_TABLE = 40  # tokens, up to which the table is not folded
_LONGEST_TOKEN, _LONGEST_GUESS = 40, 14  # characters that are shown
_COLOUR = (53, 132, 228)  # of attention's maps; it shows on white as on black
_VISIBLE = {" ": "·", "\n": "↵", "\t": "→", "\r": "␍", "\u00a0": "⍽"}
_LIKELY = (0.5, 0.2, 0.05, 0.01, 0.001)  # borders of the shades, as probabilities
_SHADES = ("50 % or more", "20 - 50 %", "5 - 20 %", "1 - 5 %", "0.1 - 1 %", "below 0.1 %")
_UNLIKELY = 0.001
_IN_PLAIN = 3  # alternatives in the plain table


def explanation_page(explanation: Explanation, title: str) -> str:
    """One HTML file that needs nothing else; below 3 MB for whatever `slm.explain` allows. title: plain text."""
    body = f"<h1>{escaped(title)}</h1>\n{_body(explanation, _chooser(explanation))}"
    return page(title, body, style=STYLE, script=SCRIPT)


def explanation_fragment(explanation: Explanation) -> str:
    """The same for a notebook's cell, without its script."""
    return fragment(_body(explanation, ""), style=STYLE)


def visible(piece: str, most: int = _LONGEST_TOKEN) -> str:
    """A token's text as plain text that can be seen: a space as a middle dot, a line's end as an arrow."""
    if len(piece) > most:
        piece = piece[: most - 1] + "…"
    shown = "".join(_VISIBLE.get(c, c if c.isprintable() else f"<U+{ord(c):04X}>") for c in piece)
    return f"◌{shown}" if shown and unicodedata.combining(shown[0]) else shown


def percent(probability: float) -> str:
    """A probability as per cent, with digits enough to tell a small one from none."""
    value = 100 * probability
    if value >= 9.95:
        return f"{value:.0f} %"
    return f"{value:.1f} %" if value >= 0.095 else "below 0.1 %"


def _body(explanation: Explanation, chooser: str) -> str:
    parts = (
        _introduction(explanation),
        _surprise(explanation),
        _token_table(explanation),
        _lens(explanation),
        _attention(explanation, chooser),
    )
    return "\n".join(parts)


def _introduction(explanation: Explanation) -> str:
    tokens = len(explanation.tokens) - explanation.begins
    start = (
        " Before them stands one more, which tells this model that a text begins: it is the one that ends texts, too."
        if explanation.begins
        else " Before the first token the model had seen nothing, so that one has no numbers."
    )
    if explanation.num_given > 1:
        start += (
            f" The first {explanation.num_given:,} tokens are the source and what stands around it in every pair. They "
            "are given, and the model never learned to expect them: they have no numbers."
        )
    return (
        "<p>A language model reads a text from left to right, in <em>tokens</em>: words, parts of words, single "
        "characters or bytes. Before each token it has given every token of its vocabulary a probability of being the "
        f"next. This page tells what it said along these {tokens:,} tokens, how that came about layer by layer, and "
        f"which earlier tokens it looked at.{start} Surprise is told in nats: 0.69 for a toss of a coin.</p>"
    )


class _Told(NamedTuple):
    """A token with its numbers in words, which are "-" for one that has none."""

    piece: str
    is_known: bool
    probability: str
    surprisal: str
    rank: str
    shade: str
    alternatives: Sequence[Piece]


def _told(explanation: Explanation) -> Iterator[_Told]:
    """The tokens of a text, one by one."""
    for piece, probability, surprisal, rank, others in zip(
        explanation.tokens,
        explanation.probability,
        explanation.surprisal,
        explanation.rank,
        explanation.alternatives,
        strict=True,
    ):
        if probability is None:
            yield _Told(piece, False, "-", "-", "-", "none", others)
        else:
            yield _Told(piece, True, percent(probability), f"{surprisal:.2f}", f"{rank:,}", _shade(probability), others)


def _surprise(explanation: Explanation) -> str:
    """The text with each token in the shade of its surprisal, and what they add up to."""
    spans = []
    for number, one in enumerate(_told(explanation)):
        told = f"{one.probability}, surprisal {one.surprisal} nats, rank {one.rank}"
        told = told if one.is_known else f"no numbers: {'it is given' if number else 'nothing stands before it'}"
        spans.append(f'<span class="t {one.shade}" title="{escaped(told)}">{escaped(visible(one.piece))}</span>')
    legend = "".join(f'<span class="t s{number}">{escaped(name)}</span> ' for number, name in enumerate(_SHADES))
    numbers = (
        (_number(explanation.total, 2), f"nats: the surprisal of all {explanation.num_predicted:,} predicted tokens"),
        (_number(explanation.loss, 3), "nats per token: the mean, which is the loss that training makes small"),
        (_number(explanation.perplexity, 2), "perplexity, e to the loss: as unsure as between so many equal choices"),
    )
    return (
        "<h2>How surprised the model was</h2>"
        "<p>The <em>surprisal</em> of a token is -ln of the probability that the model gave it: 0 for what it was sure "
        "of, 0.7 at 50 %, 4.6 at 1 %. The stronger a token is shaded, the less the model expected it. "
        "The table below has the numbers; a space is shown as · and the end of a line as ↵.</p>"
        f'<p class="text">{_flowing(explanation, spans)}</p><p class="legend">Probability: {legend}</p>'
        f"{tiles(numbers)}"
    )


def _token_table(explanation: Explanation) -> str:
    rows = [
        (
            str(number),
            _code(one.piece),
            one.probability,
            one.surprisal,
            one.rank,
            _listed(one.alternatives) if one.is_known else "-",
        )
        for number, one in enumerate(_told(explanation), 1)
    ]
    rows.append(("", "<em>next</em>", "", "", "", _listed(explanation.following)))
    made = table(
        ("", "token", "probability", "surprisal", "rank", "what the model held likeliest in its place"),
        rows,
        caption="Rank 1: the token was the likeliest. The last row is what the model expects after the text.",
        numbers=(0, 2, 3, 4),
    )
    return details("All tokens in numbers", made, is_open=len(explanation.tokens) <= _OPEN_TABLE)


def _lens(explanation: Explanation) -> str:
    """A table of layers and tokens: what each layer would have said next."""
    lens, layers = explanation.lens, explanation.attention.shape[0]
    shown = [0, *(1 + layer for layer in _chosen(layers, _MOST_LAYERS))]
    head = "".join(f'<th scope="col">{_code(piece, _LONGEST_GUESS)}</th>' for piece in explanation.tokens)
    rows = [f'<tr><th scope="row">after</th>{head}</tr>']
    truth = (*explanation.ids[1:], None)
    for layer in shown:
        cells = "".join(
            _guess(*numbers)
            for numbers in zip(
                lens.tokens[layer],
                lens.probability[layer].tolist(),
                (id == true for id, true in zip(lens.ids[layer], truth, strict=True)),
                lens.true_probability[layer].tolist(),
                strict=True,
            )
        )
        name = "0, input" if layer == 0 else f"{layer}, output" if layer == layers else str(layer)
        rows.append(f'<tr><th scope="row">{name}</th>{cells}</tr>')
    came = "".join(f"<td>{_code(piece, _LONGEST_GUESS)}</td>" for piece in explanation.tokens[1:])
    rows.append(f'<tr><th scope="row">what came</th>{came}<td></td></tr>')
    left_out = f" Of its {layers:,} layers, {len(shown) - 1} are shown." if len(shown) <= layers else ""
    return (
        "<h2>What each layer would have said</h2>"
        "<p>The model is a stack of layers, and each adds to what the one before it passes on. Here the model's output "
        "layer is applied after each of them, as if it were the last (the <em>logit lens</em>): each cell has the "
        "likeliest next token so far and its probability. Early layers often guess nonsense, for the output layer was "
        "made for the last one; watch where the answer settles. Row 0 is before the first layer, where a token is "
        "only its entry in a table. The greener, the surer; a guess that is what came is <b>bold and underlined</b>. "
        f"Layer 1 is <code>blocks.0</code> in the model.{left_out}</p>"
        f'<div class="wide" tabindex="0" role="region" aria-label="Each layer\'s guess">'
        f'<table class="lens"><tbody>{"".join(rows)}</tbody></table></div>'
    )


def _guess(piece: str, probability: float, is_true: bool, true_probability: float) -> str:
    """A cell of the lens."""
    told = "" if math.isnan(true_probability) else f' title="what came: {percent(true_probability)}"'
    shown = f"<b>{_code(piece, _LONGEST_GUESS)}</b>" if is_true else _code(piece, _LONGEST_GUESS)
    return f'<td class="p{_shade(probability)[1:]}"{told}>{shown}<small>{percent(probability)}</small></td>'


def _attention(explanation: Explanation, chooser: str) -> str:
    """A row of maps for each layer."""
    layers, heads = explanation.attention.shape[:2]
    rows = []
    for layer in _chosen(layers, max(1, MOST_MAPS // heads)):
        maps = "".join(_map(explanation.attention[layer, head], layer, head) for head in range(min(heads, MOST_MAPS)))
        rows.append(f'<h3>Layer {layer + 1}</h3><div class="maps">{maps}</div>')
    left_out = f" Of {layers:,} layers, {len(rows)} are shown." if len(rows) < layers else ""
    return (
        "<h2>Where the model looked</h2>"
        "<p>In each layer, every <em>head</em> gathers for each token what it needs from that token and those before "
        "it, in shares that add up to 100 %. In a map, each row is a token that looks, from the first on top to the "
        "last, and each column one that is looked at; the stronger the colour, the larger the share. What lies above "
        "the diagonal is the future, which no token sees. Some heads have a habit, which stands below the map: they "
        f"look at the token before, say, or at the first one when they have nothing to do.{left_out}</p>"
        f"{chooser}{''.join(rows)}"
    )


def _map(weights: NDArray[np.float32], layer: int, head: int) -> str:
    """The picture of one head, (T, T), with its habit in words."""
    size, habit = len(weights), _habit(weights)
    data = base64.b64encode(_png(np.sqrt(weights))).decode()
    return (
        f'<figure><img data-layer="{layer + 1}" data-head="{head + 1}" width="{size}" height="{size}" '
        f'alt="Attention of layer {layer + 1}, head {head + 1}: {habit}" src="data:image/png;base64,{data}">'
        f"<figcaption>head {head + 1}<small>{habit}</small></figcaption></figure>"
    )


def _habit(weights: NDArray[np.float32]) -> str:
    """Which place a head looks at most, on average over the tokens for which the places differ."""
    later = weights[2:]
    if len(later) == 0:
        return "too few tokens to tell"
    means = {
        "itself": float(np.diagonal(weights)[2:].mean()),
        "the token before": float(np.diagonal(weights, offset=-1)[1:].mean()),
        "the first token": float(later[:, 0].mean()),
    }
    place, share = max(means.items(), key=lambda one: one[1])
    return f"{place} {percent(share)}" if share >= 0.3 else "spread out"


def _png(alpha: NDArray[np.float32]) -> bytes:
    """A picture of one colour with these opacities, 0-1, (height, width): a byte for each, which a palette names."""
    height, width = alpha.shape
    rows = np.zeros((height, 1 + width), np.uint8)  # a row begins with its filter, 0: none
    rows[:, 1:] = np.rint(255 * alpha)

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)),
            chunk(b"PLTE", bytes(_COLOUR) * 256),
            chunk(b"tRNS", bytes(range(256))),
            chunk(b"IDAT", zlib.compress(rows.tobytes(), 9)),
            chunk(b"IEND", b""),
        )
    )


def _chooser(explanation: Explanation) -> str:
    """What the script fills with life, and shows: a layer, a head and a token to choose."""
    layers, heads = explanation.attention.shape[:2]
    shown = [layer + 1 for layer in _chosen(layers, max(1, MOST_MAPS // heads))]

    def choice(name: str, numbers: Iterable[int]) -> str:
        options = "".join(f'<option value="{number}">{number}</option>' for number in numbers)
        return f'<label>{name} <select><option value="">mean of all</option>{options}</select></label>'

    buttons = [
        f'<button type="button" class="t" tabindex="-1">{escaped(visible(piece))}</button>'
        for piece in explanation.tokens
    ]
    return (
        '<div class="panel chooser" hidden><p>Choose a token, and those that it looks at are shaded by their share. '
        "Arrow keys go from token to token.</p>"
        f"<p>{choice('layer', shown)} {choice('head', range(1, min(heads, MOST_MAPS) + 1))}</p>"
        f'<p class="text">{_flowing(explanation, buttons)}</p><p class="told" aria-live="polite"></p></div>'
    )


def _chosen(total: int, most: int) -> Sequence[int]:
    """Numbers below total, at most so many, evenly spread, the last one among them."""
    if total <= most:
        return range(total)
    return [math.ceil((number + 1) * total / most) - 1 for number in range(most)]


def _shade(probability: float) -> str:
    """The class of a probability, s0 the likeliest."""
    return f"s{sum(probability < border for border in _LIKELY)}"


def _number(value: float, digits: int) -> str:
    if not math.isfinite(value):
        return "-"
    return f"{value:,.{digits}f}" if value < 1e6 else f"{value:.3g}"


def _code(piece: str, most: int = _LONGEST_TOKEN) -> str:
    return f"<code>{escaped(visible(piece, most))}</code>"


def _flowing(explanation: Explanation, tokens: Sequence[str]) -> str:
    """The elements of all tokens one after the other, with lines that end as in the text."""
    return "".join(
        element + ("<br>" if "\n" in piece else "<wbr>")
        for element, piece in zip(tokens, explanation.tokens, strict=True)
    )


def told_alternatives(pieces: Sequence[Piece]) -> Sequence[Piece]:
    """The likeliest of them, and the others that are likelier than a thousandth."""
    return [one for number, one in enumerate(pieces) if not number or one[1] >= _UNLIKELY]


def _listed(pieces: Sequence[Piece]) -> str:
    """Pieces of text with their probabilities."""
    shown = told_alternatives(pieces)
    return " ".join(f'<span class="pair">{_code(piece)} {percent(value)}</span>' for piece, value in shown)


def plain_table(found: Explanation) -> str:
    """The tokens of a text in lines that align, and what they add up to."""

    def listed(pieces: Sequence[tuple[str, float]]) -> str:
        return "  ".join(f"{visible(piece)} {percent(value)}" for piece, value in told_alternatives(pieces)[:_IN_PLAIN])

    rows = [("token", "probability", "surprisal", "rank", "likeliest in its place")]
    for one in _told(found):
        others = listed(one.alternatives) if one.is_known else "-"
        rows.append((visible(one.piece), one.probability, one.surprisal, one.rank, others))
    rows.append(("next", "", "", "", listed(found.following)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            (row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:4], widths[1:4], strict=True)), row[4])
        )
        for row in rows
    ]
    sums = f"{found.total:.2f} nats in {found.num_predicted:,} predicted tokens"
    return "\n".join(
        [*(line.rstrip() for line in lines), "", f"{sums}: loss {found.loss:.4f}, perplexity {found.perplexity:.2f}"]
    )
