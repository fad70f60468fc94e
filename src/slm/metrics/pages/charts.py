"""Curves as inline SVG: a few kilobytes, sharp at any size, in the colours of the page around them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from slm.metrics.pages.page import escaped
from slm.showing import Smoothed

WIDTH, HEIGHT = 480, 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 92, 12, 40  # margins
_MOST_POINTS = 300  # of a curve
_TICKS = 5
_LABEL_HEIGHT = 14
_ROOM = 8  # for dots and rings at the ends
_FACTOR = 1000  # between numbers that one linear axis cannot show
_DASHES = ("", "7 3", "2 3", "9 3 2 3", "4 2", "12 4")  # curves differ by more than their colour
_LARGEST = 1e100  # what lies beyond is shown no more than what is no finite number
_BEGINNING = 0.1  # of the steps, in which a loss falls so far that the rest would look flat


@dataclass(frozen=True)
class Line:
    """A curve: points (x, y), of which those that are no finite number leave a gap."""

    name: str
    points: Sequence[tuple[float, float]]
    faint: bool = False  # beside its smoothed curve, without a label of its own
    dots: bool = False  # with a dot at each point, which tells its numbers
    series: int = 1  # 1-6: colour and dashes
    told: str = ""  # below its name at its end, in place of its last number
    ring: tuple[float, float] | None = None  # a point to point out


@dataclass(frozen=True)
class _Frame:
    """Where numbers lie on the picture."""

    x0: float
    x1: float
    y0: float
    y1: float
    is_log: bool = False  # then y0 and y1 are powers of ten

    def x(self, value: float) -> float:
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * (value - self.x0) / (self.x1 - self.x0)

    def y(self, value: float) -> float:
        height = math.log10(value) if self.is_log else value
        return _TOP + (HEIGHT - _TOP - _BOTTOM) * (self.y1 - height) / (self.y1 - self.y0)


def line_chart(
    title: str,
    lines: Sequence[Line],
    *,
    x_label: str,
    y_label: str,
    note: str = "",
    marks: Sequence[tuple[float, str]] = (),
    from_zero: bool = False,
    may_be_log: bool = False,
) -> str:
    """A figure with the curves, named at their ends; nothing where there is no point.

    marks: (x, name) of upright lines. from_zero: the y axis begins at 0. may_be_log: it shows powers of ten where
    numbers differ by a factor of a thousand. Where a curve falls most in its first steps, the axis leaves their heights
    out. The note says so.
    """
    told = _in_words(title, lines)
    lines = [replace(line, points=thinned_points(line.points)) for line in lines]
    points = [point for line in lines for point in line.points if _is_finite(point)]
    if not points:
        return ""
    frame, cut = _frame(points, from_zero, may_be_log)
    if cut:
        note = f"{note} {cut}".strip()
    body = [_axes(frame, x_label, y_label), *(_mark(frame, x, name) for x, name in marks if frame.x0 <= x <= frame.x1)]
    # What is outside is not shown.
    box = f"{_LEFT - _ROOM} {_TOP} {WIDTH - _LEFT - _RIGHT + 2 * _ROOM} {HEIGHT - _TOP - _BOTTOM}"
    x, y, width, height = box.split()
    curves = "".join(_curve(frame, line) for line in lines)
    body.append(f'<svg x="{x}" y="{y}" width="{width}" height="{height}" viewBox="{box}">{curves}</svg>')
    body += _labels(frame, [line for line in lines if not line.faint])
    caption = f"<small>{escaped(note)}</small>" if note else ""
    return (
        f'<figure class="chart"><figcaption>{escaped(title)}{caption}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escaped(told)}">'
        f"{''.join(body)}</svg></figure>"
    )


def thinned_points(points: Sequence[tuple[float, float]], most: int = _MOST_POINTS) -> list[tuple[float, float]]:
    """At most so many of the points, 3 or more: of each stretch the lowest and the highest, and the last of all.

    So no jump is lost.
    """
    if len(points) <= most:
        return list(points)
    kept: set[int] = {len(points) - 1}
    size = math.ceil(len(points) / ((most - 1) // 2))
    for start in range(0, len(points), size):
        places = range(start, min(start + size, len(points)))
        finite = [place for place in places if _is_finite(points[place])] or [start]
        kept |= {min(finite, key=lambda place: points[place][1]), max(finite, key=lambda place: points[place][1])}
    return [points[place] for place in sorted(kept)]


def smoothed(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points with each y smoothed with those before it; gaps are passed over."""
    losses = Smoothed()
    return [(x, losses.add(y)) for x, y in points if math.isfinite(y)]


def number(value: float) -> str:
    """A number in few characters: 0.00031, 4.21, 12,000, 120k, 1.2M, 5.3e+09."""
    if value == 0:
        return "0"
    if abs(value) >= 9.995e8:
        return f"{value:.2g}"
    if abs(value) >= 999_999.5:
        return f"{value / 1e6:.3g}M"
    if abs(value) >= 99_999.5:
        return f"{value / 1000:.3g}k"
    return f"{value:,.0f}" if abs(value) >= 999.5 else f"{value:.3g}"


def exact(value: float) -> str:
    """The same, but with three digits even where the last ones are zeros: 2.00."""
    return f"{value:#.3g}" if 0.001 <= abs(value) < 99.95 else number(value)


def _is_finite(point: tuple[float, float]) -> bool:
    return abs(point[0]) < _LARGEST and abs(point[1]) < _LARGEST  # NaN is not


def _frame(points: Sequence[tuple[float, float]], from_zero: bool, may_be_log: bool) -> tuple[_Frame, str]:
    """(The numbers that the picture shows; what is special about it, in words.)"""
    xs, ys = [x for x, _ in points], [y for _, y in points]
    x0, x1, low, high, cut = min(xs), max(xs), min(ys), max(ys), ""
    x1 = x0 + _apart(x0, x1) if _are_one(x0, x1) else x1
    if may_be_log and 0 < _FACTOR * low < high:
        told = "Each line across is as many times the one below it."
        return _Frame(x0, x1, math.log10(low) - 0.1, math.log10(high) + 0.1, is_log=True), told
    later = [y for x, y in points if x > x0 + _BEGINNING * (x1 - x0)]
    if len(later) > 4 and not from_zero and high - max(later) > max(later) - min(later):
        first = min(x for x, _ in points if x > x0 + _BEGINNING * (x1 - x0))
        cut = f"Left of {number(first)} the curves run above the picture, from {number(high)} on."
        high = max(later)
    low = min(0.0, low) if from_zero else low
    room = _apart(low, high) if _are_one(low, high) else 0.06 * (high - low)
    return _Frame(x0, x1, low if from_zero else low - room, high + room), cut


def _are_one(low: float, high: float) -> bool:
    return high - low <= max(1e-6 * max(abs(low), abs(high)), 1 / _LARGEST)


def _apart(low: float, high: float) -> float:
    """Room for numbers that are all the same."""
    return max(0.5 * max(abs(low), abs(high)), 1 / _LARGEST) if low or high else 1.0


def ticks(low: float, high: float, most: int = _TICKS) -> list[float]:
    """Round numbers from low to high, at most about so many."""
    raw = (high - low) / most
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= raw)
    first = math.ceil(low / step - 1e-9)
    return [n * step for n in range(first, math.floor(high / step + 1e-9) + 1)]


def powers(low: float, high: float, most: int = _TICKS) -> list[float]:
    """Evenly spread powers of ten from 10^low to 10^high, at most about so many."""
    first, last = math.ceil(low), math.floor(high)
    step = -(-(last - first + 1) // most) or 1
    return [10.0**exponent for exponent in range(first, last + 1, step)]


def tick_labels(values: Sequence[float]) -> list[str]:
    """The ticks in few characters, but so many that no two look alike."""
    largest, step = max(map(abs, values), default=0), values[1] - values[0] if len(values) > 1 else 0
    if not largest or not step:
        return [number(value) for value in values]
    digits = max(3, math.floor(math.log10(largest)) - math.floor(math.log10(step) + 1e-9) + 2)
    are_short = digits == 3 or (1000 <= largest < 99_999.5 and step >= 10)
    return [number(value) if are_short else f"{value:,.{digits}g}" for value in values]


def _axes(frame: _Frame, x_label: str, y_label: str) -> str:
    parts = []
    values = powers(frame.y0, frame.y1) if frame.is_log else ticks(frame.y0, frame.y1)
    labels = [number(value) for value in values] if frame.is_log else tick_labels(values)
    for value, label in zip(values, labels, strict=True):
        y = frame.y(value)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{label}</text>')
    bottom = HEIGHT - _BOTTOM
    values = ticks(frame.x0, frame.x1)
    for value, label in zip(values, tick_labels(values), strict=True):
        parts.append(f'<text x="{frame.x(value):.1f}" y="{bottom + 16}" text-anchor="middle">{label}</text>')
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escaped(x_label)}</text>')
    upright = (_TOP + bottom) / 2
    parts.append(
        f'<text transform="translate(12 {upright}) rotate(-90)" text-anchor="middle">{escaped(y_label)}</text>'
    )
    return "".join(parts)


def _mark(frame: _Frame, x: float, name: str) -> str:
    at = frame.x(x)
    end = "end" if at > (_LEFT + WIDTH - _RIGHT) / 2 else "start"
    shift = -4 if end == "end" else 4
    return (
        f'<line class="mark" x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP}" y2="{HEIGHT - _BOTTOM}"/>'
        f'<text x="{at + shift:.1f}" y="{_TOP + 8}" text-anchor="{end}">{escaped(name)}</text>'
    )


def _curve(frame: _Frame, line: Line) -> str:
    colour = f"var(--series-{line.series})"
    path, pen = [], "M"
    for point in line.points:
        if not _is_finite(point):
            pen = "M"
            continue
        path.append(f"{pen}{frame.x(point[0]):.1f} {frame.y(point[1]):.1f}")
        pen = "L"
    dashes = _DASHES[line.series - 1]
    dash = f' stroke-dasharray="{dashes}"' if dashes and not line.faint else ""
    kind = "curve faint" if line.faint else "curve"
    parts = [f'<path class="{kind}" style="stroke:{colour}"{dash} d="{"".join(path)}"/>']
    for x, y in line.points if line.dots or len(_finite(line)) == 1 else ():
        if _is_finite((x, y)):
            told = escaped(f"{line.name} {number(y)} at {number(x)}")
            parts.append(
                f'<circle cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" r="3" style="fill:{colour}">'
                f"<title>{told}</title></circle>"
            )
    if line.ring and _is_finite(line.ring):
        x, y = (frame.x(line.ring[0]), frame.y(line.ring[1]))
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="6" style="fill:none;stroke:{colour};stroke-width:2"/>')
    return "".join(parts)


def _labels(frame: _Frame, lines: Sequence[Line]) -> list[str]:
    """The names of the curves at their last points, moved apart where they would overlap."""
    ends = [(frame.y(points[-1][1]), line, points[-1]) for line in lines if (points := _finite(line))]
    ends.sort(key=lambda end: end[0])
    places: list[float] = []
    for y, _, _ in ends:
        places.append(max(y, places[-1] + 2 * _LABEL_HEIGHT if places else _TOP))
    over = places[-1] + _LABEL_HEIGHT - (HEIGHT - _BOTTOM) if places else 0
    for index in range(len(places) - 1, -1, -1):
        if over > 0:
            places[index] -= over
        if index and places[index - 1] > places[index] - 2 * _LABEL_HEIGHT:
            over = places[index - 1] - (places[index] - 2 * _LABEL_HEIGHT)
        else:
            over = 0
    x = WIDTH - _RIGHT + 6
    return [
        f'<text class="label" x="{x}" y="{place:.1f}" style="fill:var(--series-{line.series})">{escaped(line.name)}'
        f'<tspan x="{x}" dy="{_LABEL_HEIGHT}">{escaped(line.told or exact(last[1]))}</tspan></text>'
        for place, (_, line, last) in zip(places, ends, strict=True)
    ]


def _finite(line: Line) -> list[tuple[float, float]]:
    return [point for point in line.points if _is_finite(point)]


def _in_words(title: str, lines: Sequence[Line]) -> str:
    """What the picture shows, for who does not see it."""
    told = [title]
    for line in lines:
        points = _finite(line)
        if points and not line.faint:
            (x0, first), (x1, last) = points[0], points[-1]
            lowest = min(points, key=lambda point: point[1])
            told.append(
                f"{line.name}: {number(first)} at {number(x0)}, lowest {number(lowest[1])} at {number(lowest[0])}, "
                f"{number(last)} at {number(x1)}"
            )
    return ". ".join(told)
