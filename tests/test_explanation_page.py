"""Laws of the explanation's page: complete by itself, small, and nothing in a text becomes part of its code."""

from __future__ import annotations

import base64
import dataclasses
import re
import struct
import zlib
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from models import small_model

from slm.data.tokenizer import byte_tokenizer
from slm.metrics.explain import MOST_WEIGHTS, Explanation, Lens, explain_tokens
from slm.metrics.pages.explanation import explanation_page, percent, visible
from slm.metrics.pages.page import STYLE
from slm.metrics.pages.seeing import SCRIPT, SHADES

MEGABYTES = 1e6
HOSTILE = [
    "</script><b>",
    "<img src=x onerror=alert(1)>",
    '" onclick="x',
    "'",
    "&amp;",
    "</style>",
    "<!--",
    "]]>",
    "\0",
]


class Parsed(HTMLParser):
    """The tags with their attributes, and the text outside of scripts and styles."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.pieces: list[str] = []
        self.inside: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag in ("script", "style"):
            self.inside.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self.inside:
            self.inside.remove(tag)

    def handle_data(self, data: str) -> None:
        if not self.inside:
            self.pieces.append(data)

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    @property
    def skeleton(self) -> list[Any]:
        return [(tag, sorted(attributes)) for tag, attributes in self.tags]


def explanation(tokens: list[int] | None = None, **options: Any) -> Explanation:
    return explain_tokens(small_model(**options), tokens or [3, 9, 20, 7, 1, 7, 11], byte_tokenizer())


def with_pieces(found: Explanation, pieces: list[str]) -> Explanation:
    """The same numbers of other tokens."""

    def renamed(values: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(pieces[number % len(pieces)] for number in range(len(values)))

    def pairs(values: tuple[tuple[str, float], ...]) -> tuple[tuple[str, float], ...]:
        return tuple(zip(renamed(tuple(p for p, _ in values)), (value for _, value in values), strict=True))

    return dataclasses.replace(
        found,
        tokens=renamed(found.tokens),
        alternatives=tuple(map(pairs, found.alternatives)),
        following=pairs(found.following),
        lens=dataclasses.replace(found.lens, tokens=tuple(map(renamed, found.lens.tokens))),
    )


def views(found: Explanation, title: str = "a title") -> list[str]:
    return [explanation_page(found, title), found._repr_html_()]


def test_markup_in_a_text_never_becomes_markup() -> None:
    found = explanation()
    plain = views(with_pieces(found, ["x"] * len(HOSTILE)))
    hostile = views(with_pieces(found, HOSTILE), title=HOSTILE[0])
    for before, after in zip(plain, hostile, strict=True):
        assert Parsed(after).skeleton == Parsed(before).skeleton
        assert "<b>script" not in after
        assert "onerror=alert(1)>" not in after
        assert visible("</script><b>") in Parsed(after).text


def test_the_page_needs_nothing_from_elsewhere() -> None:
    for html in views(explanation()):
        assert not re.search(r"https?://", html)
        assert not re.search(r"@import|url\(", html)
        for tag, attributes in Parsed(html).tags:
            assert tag not in ("link", "iframe", "object", "base")
            for name in ("src", "href", "srcset"):
                assert (attributes.get(name) or "data:image/png;base64,").startswith("data:image/png;base64,")


def test_a_page_has_one_script_of_its_own_and_a_notebook_none() -> None:
    whole, cell = (Parsed(html) for html in views(explanation()))
    assert [attributes for tag, attributes in whole.tags if tag == "script"] == [{}]
    assert not [tag for tag, _ in cell.tags if tag in ("script", "button", "select")]
    assert not [name for _, attributes in whole.tags + cell.tags for name in attributes if name.startswith("on")]


def test_without_the_script_nothing_is_shown_that_needs_it() -> None:
    tags = Parsed(explanation_page(explanation(), "a title")).tags
    chooser = next(attributes for tag, attributes in tags if tag == "div" and "chooser" in (attributes["class"] or ""))
    assert "hidden" in chooser
    assert "chooser.hidden = false" in SCRIPT


def test_all_numbers_are_on_the_page() -> None:
    found = explanation()
    for html in views(found):
        text = Parsed(html).text
        for number in (found.total, found.perplexity):
            assert f"{number:,.2f}" in text
        assert f"{found.loss:.3f}" in text
        titles = [a["title"] for tag, a in Parsed(html).tags if tag == "span" and "title" in a]
        assert len(titles) == 7
        for probability, surprisal, rank, title in zip(
            found.probability[1:], found.surprisal[1:], found.rank[1:], titles[1:], strict=True
        ):
            assert probability is not None
            assert title == f"{percent(probability)}, surprisal {surprisal:.2f} nats, rank {rank}"
            assert f"{surprisal:.2f}{rank}" in text  # neighbouring cells of the table
        for row in found.lens.probability:
            assert all(percent(value) in text for value in row)
        maps = [a["alt"] or "" for tag, a in Parsed(html).tags if tag == "img"]
        assert [alt.split(":")[0] for alt in maps] == [
            f"Attention of layer {layer}, head {head}" for layer in (1, 2) for head in (1, 2, 3, 4)
        ]


def shares(image: str, script: str = SCRIPT) -> Any:
    """The weights of a map, read from where the script reads them."""
    data = base64.b64decode(image.removeprefix("data:image/png;base64,"))
    width, height = struct.unpack(">II", data[16:24])
    start = int(re.findall(r"IDAT = (\d+)", script)[0])
    (size,) = struct.unpack(">I", data[start : start + 4])
    assert data[start + 4 : start + 8] == b"IDAT"
    rows = np.frombuffer(zlib.decompress(data[start + 8 : start + 8 + size]), np.uint8).reshape(height, width + 1)
    assert not rows[:, 0].any()
    return (rows[:, 1:] / 255) ** 2


def test_the_maps_hold_the_weights_where_the_script_reads_them() -> None:
    found = explanation()
    images = [a for tag, a in Parsed(explanation_page(found, "a title")).tags if tag == "img"]
    assert len(images) == 8
    for image in images:
        weights = found.attention[int(image["data-layer"] or 0) - 1, int(image["data-head"] or 0) - 1]
        np.testing.assert_allclose(np.sqrt(shares(image["src"] or "")), np.sqrt(weights), atol=0.5 / 255 + 1e-6)


def test_a_map_is_a_picture_that_others_can_read() -> None:
    image = next(a["src"] or "" for tag, a in Parsed(explanation_page(explanation(), "x")).tags if tag == "img")
    data, place, kinds = base64.b64decode(image.split(",")[1]), 8, []
    while place < len(data):
        (size,) = struct.unpack(">I", data[place : place + 4])
        kinds.append(data[place + 4 : place + 8])
        assert zlib.crc32(data[place + 4 : place + 8 + size]) == struct.unpack(">I", data[place + 8 + size :][:4])[0]
        place += 12 + size
    assert kinds == [b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"]


def test_the_habit_of_a_head_is_told() -> None:
    found = explanation()
    weights = np.zeros((1, 3, 7, 7), np.float32)
    weights[0, 0], weights[0, 1, :, 0], weights[0, 2] = np.eye(7), 1, np.eye(7, k=-1)
    weights[0, 2, 0, 0] = 1
    html = explanation_page(dataclasses.replace(found, attention=weights), "x")
    assert [a["alt"] for tag, a in Parsed(html).tags if tag == "img"] == [
        "Attention of layer 1, head 1: itself 100 %",
        "Attention of layer 1, head 2: the first token 100 %",
        "Attention of layer 1, head 3: the token before 100 %",
    ]


@pytest.mark.parametrize(
    ("piece", "shown"),
    [
        (" the", "·the"),
        ("\n\t ", "↵→·"),
        ("\u202eabc\x1b", "<U+202E>abc<U+001B>"),
        ("\u0301", "◌\u0301"),
        ("\u00a0", "⍽"),
        ("<0xE2>", "<0xE2>"),
        ("é日😀", "é日😀"),
        ("x" * 41, "x" * 39 + "…"),
        ("", ""),
    ],
)
def test_every_token_can_be_seen(piece: str, shown: str) -> None:
    assert visible(piece) == shown


def test_a_probability_is_never_shown_as_none() -> None:
    assert [percent(p) for p in (1.0, 0.5, 0.0996, 0.0949, 0.001, 0.0001, 0.0)] == [
        "100 %", "50 %", "10 %", "9.5 %", "0.1 %", "below 0.1 %", "below 0.1 %",
    ]  # fmt: skip


def largest(layers: int, heads: int, tokens: int) -> Explanation:
    """As many numbers as a text may have, as hard to compress as they get, of tokens that are long and all markup."""
    draw = np.random.default_rng(0)
    weights = np.tril(draw.random((layers, heads, tokens, tokens), np.float32) ** 4 + 1e-6)
    weights /= weights.sum(axis=-1, keepdims=True)
    chances = draw.random((layers + 1, tokens))
    piece = "<&'\">" * 20
    pairs = tuple((piece, 0.123) for _ in range(5))
    lens = Lens(((piece,) * tokens,) * (layers + 1), ((1,) * tokens,) * (layers + 1), chances, chances)
    numbers = (None, *(0.123 for _ in range(tokens - 1)))
    ranks = (None, *(12345 for _ in range(tokens - 1)))
    return Explanation(
        (piece,) * tokens, (1,) * tokens, False, numbers, numbers, ranks, (pairs,) * tokens, pairs, weights, lens
    )


@pytest.mark.parametrize(
    ("layers", "heads", "tokens"), [(5, 6, 256), (30, 1, 256), (12, 12, 117), (80, 64, 19), (2000, 1, 31)]
)
def test_a_page_at_the_limits_is_below_three_megabytes(layers: int, heads: int, tokens: int) -> None:
    assert 0.85 * MOST_WEIGHTS < layers * heads * tokens**2 <= MOST_WEIGHTS
    found = largest(layers, heads, tokens)
    for html in views(found):
        assert len(html.encode()) < 3 * MEGABYTES
    maps = sum(tag == "img" for tag, _ in Parsed(explanation_page(found, "x")).tags)
    assert maps == min(layers, 512 // heads) * heads


def test_what_is_left_out_of_a_deep_model_is_told() -> None:
    html = explanation_page(largest(600, 1, 3), "x")
    text, images = Parsed(html).text, [a for tag, a in Parsed(html).tags if tag == "img"]
    assert "Of its 600 layers, 32 are shown." in text
    assert "Of 600 layers, 512 are shown." in text
    assert images[-1]["data-layer"] == "600"
    assert "600, output" in text
    assert "are shown" not in Parsed(explanation_page(explanation(), "x")).text


def test_ink_can_be_read_on_every_shade_in_light_and_dark() -> None:
    assert list(SHADES) == sorted(SHADES)
    themes = re.findall(
        r"--ink: (#\w{6}).*?--paper: (#\w{6}).*?--panel: (#\w{6}).*?--heat: ([\d, ]+);", STYLE, re.DOTALL
    )
    assert len(set(themes)) == 2
    for ink, paper, panel, heat in themes:
        for ground in (paper, panel):
            shaded = [
                SHADES[-1] * int(strong) + (1 - SHADES[-1]) * weak
                for strong, weak in zip(heat.split(","), rgb(ground), strict=True)
            ]
            light, dark = sorted((brightness(rgb(ink)), brightness(shaded)), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5  # WCAG 2.2, 1.4.3


def rgb(colour: str) -> list[float]:
    return [int(colour[place : place + 2], 16) for place in (1, 3, 5)]


def brightness(colour: list[float]) -> float:
    """Relative luminance, as WCAG defines it."""
    parts = [c / 255 / 12.92 if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]
