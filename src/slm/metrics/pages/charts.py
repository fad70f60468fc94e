"""Curves as inline SVG: a few kilobytes, sharp at any size, in the colours of the page around them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from slm.metrics.pages.page import escaped

WIDTH, HEIGHT = 480, 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 92, 12, 40  # margins
_MOST_POINTS = 300  # of a curve
_TICKS = 5
_LABEL_HEIGHT = 14
_DASHES = ("", "7 3", "2 3", "9 3 2 3", "4 2", "12 4")  # curves differ by more than their colour
_BEGINNING = 0.05  # of the steps, in which a loss falls so far that the rest would look flat


@dataclass(frozen=True)
class Line:
    """A curve: points (x, y), of which those that are no finite number leave a gap."""

    name: str
    points: Sequence[tuple[float, float]]
    faint: bool = False  # beside its smoothed curve, without a label of its own
    dots: bool = False  # with a dot at each point, which tells its numbers
    series: int = 1  # 1-6: colour and dashes


@dataclass(frozen=True)
class _Frame:
    """Where numbers lie on the picture."""

    x0: float
    x1: float
    y0: float
    y1: float

    def x(self, value: float) -> float:
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * (value - self.x0) / (self.x1 - self.x0)

    def y(self, value: float) -> float:
        return _TOP + (HEIGHT - _TOP - _BOTTOM) * (self.y1 - value) / (self.y1 - self.y0)


def line_chart(
    title: str,
    lines: Sequence[Line],
    *,
    x_label: str,
    y_label: str,
    note: str = "",
    marks: Sequence[tuple[float, str]] = (),
    from_zero: bool = False,
) -> str:
    """A figure with the curves, named at their ends; nothing where there is no point.

    marks: (x, name) of upright lines. from_zero: the y axis begins at 0. Where a curve falls most in its first steps,
    the axis leaves their heights out, and the note says so.
    """
    lines = [replace(line, points=thinned_points(line.points)) for line in lines]
    points = [point for line in lines for point in line.points if _is_finite(point)]
    if not points:
        return ""
    frame, cut = _frame(points, from_zero)
    if cut:
        note = f"{note} {cut}".strip()
    body = [_axes(frame, x_label, y_label), *(_mark(frame, x, name) for x, name in marks if frame.x0 <= x <= frame.x1)]
    body += [_curve(frame, line) for line in lines]
    body += _labels(frame, [line for line in lines if not line.faint])
    caption = f"<small>{escaped(note)}</small>" if note else ""
    return (
        f'<figure class="chart"><figcaption>{escaped(title)}{caption}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escaped(_in_words(title, lines))}">'
        f"{''.join(body)}</svg></figure>"
    )


def thinned_points(points: Sequence[tuple[float, float]], most: int = _MOST_POINTS) -> list[tuple[float, float]]:
    """At most so many of the points, the last one among them."""
    step = math.ceil(len(points) / most) or 1
    return list(points)[::-1][::step][::-1]


def smoothed(points: Sequence[tuple[float, float]], span: float | None = None) -> list[tuple[float, float]]:
    """The exponential mean of y over about so many points, corrected for its beginning; gaps are passed over.

    span: by default a fifteenth of the points, and 20 at most.
    """
    keep = 1 - 2 / (max(1.0, min(20.0, len(points) / 15) if span is None else span) + 1)
    mean, weight, found = 0.0, 0.0, []
    for x, y in points:
        if math.isfinite(y):
            mean, weight = keep * mean + (1 - keep) * y, keep * weight + (1 - keep)
            found.append((x, mean / weight))
    return found


def number(value: float) -> str:
    """A number in few characters: 12,000, 4.21, 0.00031."""
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _is_finite(point: tuple[float, float]) -> bool:
    return math.isfinite(point[0]) and math.isfinite(point[1])


def _frame(points: Sequence[tuple[float, float]], from_zero: bool) -> tuple[_Frame, str]:
    """(The numbers that the picture shows; what it leaves out, in words.)"""
    xs, ys = [x for x, _ in points], [y for _, y in points]
    x0, x1, low, high, cut = min(xs), max(xs), min(ys), max(ys), ""
    later = [y for x, y in points if x > x0 + _BEGINNING * (x1 - x0)]
    if len(later) > 4 and not from_zero and high - max(later) > max(later) - min(later):
        first = min(x for x, _ in points if x > x0 + _BEGINNING * (x1 - x0))
        cut = f"The first {number(first)} steps, from {number(high)} on, lie above the picture."
        high = max(later)
    low = 0.0 if from_zero else low
    room = 0.06 * (high - low) or 0.5 * abs(high) or 1.0
    return _Frame(x0, x1 if x1 > x0 else x0 + 1, low if from_zero else low - room, high + room), cut


def ticks(low: float, high: float, most: int = _TICKS) -> list[float]:
    """Round numbers from low to high, at most about so many."""
    raw = (high - low) / most
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= raw)
    first = math.ceil(low / step - 1e-9)
    return [n * step for n in range(first, math.floor(high / step + 1e-9) + 1)]


def _axes(frame: _Frame, x_label: str, y_label: str) -> str:
    parts = []
    for value in ticks(frame.y0, frame.y1):
        y = frame.y(value)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{number(value)}</text>')
    bottom = HEIGHT - _BOTTOM
    for value in ticks(frame.x0, frame.x1):
        parts.append(f'<text x="{frame.x(value):.1f}" y="{bottom + 16}" text-anchor="middle">{number(value)}</text>')
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
        path.append(f"{pen}{frame.x(point[0]):.1f} {max(frame.y(point[1]), _TOP - 8):.1f}")
        pen = "L"
    dashes = _DASHES[line.series - 1]
    dash = f' stroke-dasharray="{dashes}"' if dashes and not line.faint else ""
    kind = "curve faint" if line.faint else "curve"
    parts = [f'<path class="{kind}" style="stroke:{colour}"{dash} d="{"".join(path)}"/>']
    for x, y in line.points if line.dots else ():
        if _is_finite((x, y)) and y <= frame.y1:
            told = escaped(f"{line.name} {number(y)} at {number(x)}")
            parts.append(
                f'<circle cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" r="3" style="fill:{colour}">'
                f"<title>{told}</title></circle>"
            )
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
        f'<tspan x="{x}" dy="{_LABEL_HEIGHT}">{number(last[1])}</tspan></text>'
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
