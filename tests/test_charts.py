"""Laws of the curves on a page: points lie where they should, labels can be read, and no number breaks them."""

from __future__ import annotations

import itertools
import math
import random
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slm.metrics.pages.charts import (
    HEIGHT,
    WIDTH,
    Line,
    exact,
    line_chart,
    number,
    smoothed,
    thinned_points,
    tick_labels,
    ticks,
)

Points = list[tuple[float, float]]
CURVE = [(1.0, 3.2), (10.0, 3.0), (20.0, 2.5), (30.0, 2.7), (40.0, 2.4)]


def chart(*lines: Line, **options: object) -> ElementTree.Element:
    """The figure, as it is parsed."""
    return ElementTree.fromstring(line_chart("Loss", lines, x_label="step", y_label="nats", **options))  # type: ignore[arg-type]


def pieces(figure: ElementTree.Element, number: int = 0) -> list[Points]:
    """The pieces of a curve, as they lie on the picture."""
    path = list(figure.iter("path"))[number].attrib["d"]
    found: list[Points] = []
    for pen, x, y in re.findall(r"([ML])([-\d.]+) ([-\d.]+)", path):
        if pen == "M":
            found.append([])
        found[-1].append((float(x), float(y)))
    return found


def value(label: str) -> float:
    factor = {"k": 1e3, "M": 1e6}.get(label[-1], 1)
    return factor * float(label.rstrip("kM").replace(",", ""))


def axis(figure: ElementTree.Element, anchor: str) -> list[tuple[float, float]]:
    """(What a tick says, where it lies) of an axis: "middle" is that of x, "end" that of y."""
    place, shift = ("x", 0.0) if anchor == "middle" else ("y", 4.0)
    found = []
    for text in figure.iter("text"):
        if text.get("text-anchor") == anchor and text.text and re.fullmatch(r"-?[\d,.]+(e[-+]\d+)?[kM]?", text.text):
            found.append((value(text.text), float(text.attrib[place]) - shift))
    return found


def place(ticks: Sequence[tuple[float, float]], number: float) -> float:
    """Where a number lies on an axis, by its first and last tick."""
    (low, begin), (high, end) = ticks[0], ticks[-1]
    return begin + (end - begin) * (number - low) / (high - low)


def grid(figure: ElementTree.Element) -> tuple[float, float, float]:
    """The left and right end of the picture's lines, and the height of the lowest."""
    lines = [line.attrib for line in figure.iter("line") if line.get("class") == "grid"]
    (x1,), (x2,) = {float(line["x1"]) for line in lines}, {float(line["x2"]) for line in lines}
    return x1, x2, max(float(line["y1"]) for line in lines)


def test_points_lie_where_the_ticks_of_both_axes_put_them() -> None:
    figure = chart(Line("a", CURVE), Line("b", [(5.0, 2.2), (38.0, 3.3)], series=2))
    x, y = axis(figure, "middle"), axis(figure, "end")
    assert len(x) >= 3 and len(y) >= 3
    for curve, points in enumerate((CURVE, [(5.0, 2.2), (38.0, 3.3)])):
        (piece,) = pieces(figure, curve)
        for (at, height), (real_x, real_y) in zip(piece, points, strict=True):
            assert at == pytest.approx(place(x, real_x), abs=0.2)
            assert height == pytest.approx(place(y, real_y), abs=0.2)
    left, right, _ = grid(figure)
    assert pieces(figure)[0][0][0] == pytest.approx(left, abs=0.1)
    assert pieces(figure)[0][-1][0] == pytest.approx(right, abs=0.1)
    heights = [height for points in pieces(figure) for _, height in points]
    assert heights == sorted(heights, key=lambda one: one) or heights[0] < heights[2]  # higher numbers lie higher


def test_what_is_no_finite_number_leaves_a_gap() -> None:
    points = [(1.0, 2.0), (2.0, 2.1), (3.0, math.nan), (4.0, 2.2), (5.0, math.inf), (6.0, 2.3)]
    figure = chart(Line("a", points, dots=True))
    assert [len(piece) for piece in pieces(figure)] == [2, 1, 1]
    assert len(list(figure.iter("circle"))) == 4
    assert "nan" not in ElementTree.tostring(figure, encoding="unicode")


def test_nothing_is_drawn_of_nothing() -> None:
    for points in ([], [(1.0, math.nan)], [(math.nan, 1.0)]):
        assert line_chart("Loss", [Line("a", points)], x_label="x", y_label="y") == ""


def labels(figure: ElementTree.Element) -> list[tuple[float, str, str]]:
    """(Height, name, what is told below it) of the names of curves."""
    return [
        (float(text.attrib["y"]), text.text or "", "".join(part.text or "" for part in text.iter("tspan")))
        for text in figure.iter("text")
        if text.get("class") == "label"
    ]


@given(ends=st.lists(st.floats(1, 10), min_size=1, max_size=6))
def test_names_do_not_overlap_and_stay_inside_and_in_order(ends: list[float]) -> None:
    figure = chart(*(Line(f"n{i}", [(0.0, 5.0), (1.0, end)], series=i + 1) for i, end in enumerate(ends)))
    found = labels(figure)
    heights = [height for height, *_ in found]
    assert sorted(name for _, name, _ in found) == [f"n{i}" for i in range(len(ends))]
    assert all(after - before >= 28 - 0.11 for before, after in itertools.pairwise(sorted(heights)))  # two lines of 14
    assert min(heights) >= 10 and max(heights) + 14 <= HEIGHT - 30
    in_order = sorted(found, key=lambda label: label[0])
    shown = [ends[int(name[1:])] for _, name, _ in in_order]
    assert all(after <= before + 1e-9 for before, after in itertools.pairwise(shown))
    assert [told for *_, told in in_order] == [exact(end) for end in shown]


def test_a_faint_curve_has_no_name_and_a_name_stands_at_the_end_of_its_curve() -> None:
    figure = chart(Line("pale", CURVE, faint=True), Line("a", CURVE), Line("b", [(1.0, 2.4), (40.0, 3.2)], series=2))
    assert {name for _, name, _ in labels(figure)} == {"a", "b"}
    for height, name, _ in labels(figure):
        assert height == pytest.approx(pieces(figure, 1 if name == "a" else 2)[0][-1][1], abs=15)


def test_curves_differ_by_more_than_their_colour() -> None:
    figure = chart(*(Line(f"n{i}", CURVE, series=i) for i in range(1, 7)))
    dashes = [path.get("stroke-dasharray") for path in figure.iter("path")]
    colours = [path.get("style") for path in figure.iter("path")]
    assert len(set(dashes)) == len(set(colours)) == 6


def test_the_picture_is_told_in_words_of_all_points() -> None:
    points = [(float(step), 5.0 - step / 1000 if step != 777 else 0.5) for step in range(1, 1001)]
    (svg,) = (svg for svg in chart(Line("a", points)).iter("svg") if svg.get("role") == "img")
    assert svg.attrib["aria-label"] == "Loss. a: 5 at 1, lowest 0.5 at 777, 4 at 1,000"


def test_every_dot_tells_its_numbers() -> None:
    figure = chart(Line("a", CURVE, dots=True))
    told = [title.text for title in figure.iter("title")]
    assert told == [f"a {number(y)} at {number(x)}" for x, y in CURVE]
    dots = [(float(one.attrib["cx"]), float(one.attrib["cy"])) for one in figure.iter("circle")]
    assert dots == pieces(figure)[0]


def test_a_mark_stands_at_its_step_or_not_at_all() -> None:
    figure = chart(Line("a", CURVE), marks=[(20.0, "best"), (99.0, "beyond")])
    (mark,) = (line for line in figure.iter("line") if line.get("class") == "mark")
    assert float(mark.attrib["x1"]) == float(mark.attrib["x2"]) == pieces(figure)[0][2][0]
    texts = [text.text for text in figure.iter("text")]
    assert "best" in texts and "beyond" not in texts


def test_a_long_first_fall_is_left_out_and_that_is_said() -> None:
    points = [(float(step), 2 - step / 1000 if step > 4 else 100.0 - step) for step in range(100)]
    figure = chart(Line("a", points))
    (caption,) = (text for text in figure.iter("small"))
    assert "100" in (caption.text or "") and "above the picture" in (caption.text or "")
    y = axis(figure, "end")
    assert y[0][0] < y[-1][0] < 2.2
    whole = chart(Line("a", points), from_zero=True)
    assert max(tick for tick, _ in axis(whole, "end")) == 100
    assert min(tick for tick, _ in axis(whole, "end")) == 0
    assert not list(chart(Line("a", CURVE)).iter("small"))


def test_numbers_of_very_different_size_are_shown_by_powers_of_ten() -> None:
    points = [(1.0, 0.01), (2.0, 1.0), (3.0, 100.0)]
    figure = chart(Line("a", points), may_be_log=True)
    (piece,) = pieces(figure)
    assert piece[0][1] - piece[1][1] == pytest.approx(piece[1][1] - piece[2][1], abs=0.2)
    for tick, at in axis(figure, "end"):
        assert at == pytest.approx(piece[1][1] - (piece[1][1] - piece[2][1]) * math.log10(tick) / 2, abs=0.2)
    assert list(figure.iter("small"))
    (straight,) = pieces(chart(Line("a", points)))
    assert straight[0][1] - straight[1][1] < 2


@given(low=st.floats(-1e5, 1e5), span=st.floats(1e-3, 1e5))
def test_ticks_are_round_inside_and_evenly_spread(low: float, span: float) -> None:
    found = ticks(low, low + span)
    assert 2 <= len(found) <= 7
    slack = 1e-6 * span
    assert low - slack <= found[0] and found[-1] <= low + span + slack
    steps = [after - before for before, after in itertools.pairwise(found)]
    assert max(steps) - min(steps) <= 1e-6 * span
    mantissa = steps[0] / 10 ** math.floor(math.log10(steps[0]) + 1e-6)
    assert min(abs(mantissa - round_one) for round_one in (1, 2, 2.5, 5)) < 1e-3
    assert found[0] - steps[0] < low + slack and found[-1] + steps[0] > low + span - slack  # none is missing


@given(low=st.floats(-9e4, 9e4) | st.floats(-1e8, 1e8), span=st.floats(1e-3, 9e5) | st.floats(10, 1e8))
def test_the_label_of_a_tick_says_where_it_is(low: float, span: float) -> None:
    values = ticks(low, low + span)
    told = tick_labels(values)
    assert len(set(told)) == len(told)
    step = values[1] - values[0]
    assert all(abs(value(label) - tick) <= step / 100 for label, tick in zip(told, values, strict=True))


@given(one=st.floats(1e-9, 1e12) | st.integers(0, 2000) | st.sampled_from([999.96, 999_999.7, 9.999e8, 1e-5]))
def test_a_number_takes_few_characters_and_is_right_to_a_hundredth(one: float) -> None:
    for number_of in (one, -one):
        assert len(number(number_of)) <= 9
        assert value(number(number_of)) == pytest.approx(number_of, rel=0.05 if one > 1e9 else 0.0051)
    if one == int(one) < 1000:
        assert number(one) == str(int(one))


ANY = st.floats() | st.floats(-10, 10) | st.sampled_from([0.0, 5e-324, 1e-320, 1e300, -1e300, 1.7e308, 3.0])
SAME = st.tuples(ANY, st.integers(1, 5)).map(lambda one: [(float(x), one[0]) for x in range(one[1])])


@given(
    curves=st.lists(st.lists(st.tuples(ANY, ANY), max_size=8) | SAME, max_size=6),
    from_zero=st.booleans(),
    may_be_log=st.booleans(),
)
def test_no_numbers_break_a_chart(curves: list[Points], from_zero: bool, may_be_log: bool) -> None:
    lines = [
        Line(f"n{i}", points, dots=True, series=i + 1, ring=points[0] if points else None)
        for i, points in enumerate(curves)
    ]
    text = line_chart("<t>", lines, x_label="x", y_label="y", from_zero=from_zero, may_be_log=may_be_log)
    assert len(text) < 20_000
    if not text:
        return
    figure = ElementTree.fromstring(text)
    for one in figure.iter():
        for name in ("x", "y", "x1", "x2", "y1", "y2", "cx", "cy", "d"):
            assert not re.search("nan|inf|e", one.get(name, ""))
    for line in figure.iter("line"):
        assert 0 <= float(line.attrib["y1"]) <= HEIGHT and 0 <= float(line.attrib["x1"]) <= WIDTH
    for path in range(len(list(figure.iter("path")))):
        for x, _ in (point for piece in pieces(figure, path) for point in piece):
            assert 0 <= x <= WIDTH


@pytest.mark.parametrize("one", [3.0, -3.0, 0.0, 1e-300, 1e90, 5e-324])
def test_one_point_and_equal_points_are_shown_in_the_middle(one: float) -> None:
    for points in ([(5.0, one)], [(5.0, one), (6.0, one), (7.0, one)]):
        figure = chart(Line("a", points, dots=True))
        heights = {float(circle.attrib["cy"]) for circle in figure.iter("circle")}
        assert len(heights) == 1
        _, _, bottom = grid(figure)
        assert 0.2 * bottom < heights.pop() < 0.8 * HEIGHT


@given(length=st.integers(0, 2000), most=st.integers(3, 300), seed=st.integers(0, 99))
def test_thinned_points_are_few_keep_the_extremes_and_end_with_the_last(length: int, most: int, seed: int) -> None:
    draw = random.Random(seed)
    points = [(float(x), draw.choice([draw.random(), math.nan])) for x in range(length)]
    found = thinned_points(points, most)
    assert len(found) <= most
    assert found[-1:] == points[-1:]
    assert found == sorted(found, key=lambda point: point[0])
    assert set(map(id, found)) <= set(map(id, points))
    finite = [point for point in points if point[1] == point[1]]
    if finite:
        assert {min(finite, key=lambda p: p[1]), max(finite, key=lambda p: p[1])} <= set(found)
    if length <= most:
        assert found == points
    gaps = [after[0] - before[0] for before, after in itertools.pairwise(found)]
    assert max(gaps, default=0) <= 2 * math.ceil(length / ((most - 1) // 2))


def as_told(values: Sequence[float], last: int) -> float:
    """The smoothed value, spelled out: each later number has its share of 2 / (span + 1)."""
    mean = values[0]
    for count in range(2, last + 2):
        share = 2 / (min(20, max(1.0, count / 5)) + 1)
        mean = (1 - share) * mean + share * values[count - 1]
    return mean


@given(values=st.lists(st.floats(-100, 100), max_size=60))
def test_the_smoothed_curve_is_a_mean_of_the_last_fifth_and_passes_over_gaps(values: list[float]) -> None:
    points: Points = [(float(x), y) for x, y in enumerate(values)]
    found = smoothed([*points[:3], (2.5, math.nan), *points[3:]])
    assert [x for x, _ in found] == [x for x, _ in points]
    for place, (_, y) in enumerate(found):
        assert y == pytest.approx(as_told(values, place), abs=1e-9)
        assert min(values) - 1e-9 <= y <= max(values) + 1e-9


def test_text_of_a_chart_is_escaped() -> None:
    for make in (
        lambda evil: line_chart(evil, [Line("a", CURVE)], x_label="x", y_label="y"),
        lambda evil: line_chart("t", [Line(evil, CURVE, dots=True, told=evil)], x_label="x", y_label="y"),
        lambda evil: line_chart("t", [Line("a", CURVE)], x_label=evil, y_label=evil, note=evil, marks=[(20, evil)]),
    ):
        check_escaped(make)


def check_escaped(make: Callable[[str], str]) -> None:
    evil = "</svg><script>\"' onload='"
    figure, plain = (ElementTree.fromstring(make(text)) for text in (evil, "plain"))
    assert [(one.tag, sorted(one.attrib)) for one in figure.iter()] == [
        (one.tag, sorted(one.attrib)) for one in plain.iter()
    ]
    assert evil in "".join(figure.itertext())


def test_a_curve_of_one_point_is_seen() -> None:
    drawn = line_chart("loss", [Line("a", [(1, 2.0)])], x_label="step", y_label="nats")
    assert drawn.count("<circle") == 1
    assert "<circle" not in line_chart("loss", [Line("a", [(1, 2.0), (2, 1.0)])], x_label="step", y_label="nats")
