"""Line charts as SVG text, for the report and for notebooks: no script, no font, no library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from boot.htmlparts import escape

Point = tuple[float, float]

WIDTH, HEIGHT = 560, 280
LEFT, RIGHT, TOP, BOTTOM = 62, 16, 58, 34
MAX_POINTS = 400  # a longer line is averaged down: more cannot be seen
INK, FAINT, GRID = "#1f2328", "#6b7280", "#e5e7eb"
BLUE, ORANGE, GREY, FAINT_BLUE = "#1d4ed8", "#c2410c", "#8b95a5", "#b6c6ea"
# For series in an order, such as times from noise to image: light to dark, the last one apart.
RAMP = ("#bfdbfe", "#93c5fd", "#60a5fa", "#3b82f6")


@dataclass(frozen=True)
class Line:
    """One line of a chart: points (x, y) with rising x, a colour, and whether points are marked."""

    name: str
    points: Sequence[Point]
    colour: str = BLUE
    width: float = 1.8
    marks: bool = False


def line_chart(
    title: str, lines: Sequence[Line], *, x_label: str = "step", log_y: bool = False
) -> str:
    """Return an SVG of lines over a common x axis; a note where there is nothing to draw.

    log_y: logarithmic, for values above 0; others are left out. Values that are not finite are too.
    """
    drawn = [_clean(line, log_y) for line in lines]
    drawn = [line for line in drawn if line.points]
    head = (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'role="img" aria-label="{escape(title)}" '
        'font-family="system-ui,sans-serif" font-size="12" style="background:#fff">'
        f'<text x="{LEFT}" y="20" font-size="14" font-weight="600" fill="{INK}">'
        f"{escape(title)}</text>"
    )
    if not drawn:
        return f'{head}<text x="{LEFT}" y="60" fill="{FAINT}">nothing logged yet</text></svg>'
    axes = _Axes.around(drawn, log_y)
    body = [axes.draw(x_label), _legend(drawn)]
    body += [_path(line, axes) for line in drawn]
    return head + "".join(body) + "</svg>"


def smoothed(points: Sequence[Point], window: int) -> list[Point]:
    """Return a running mean over `window` points around each one, fewer at the ends."""
    half, result = max(0, window // 2), []
    values = [y for _, y in points]
    for i, (x, _) in enumerate(points):
        part = values[max(0, i - half) : i + half + 1]
        result.append((x, _mean(part)))
    return result


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _clean(line: Line, log_y: bool) -> Line:
    points = [
        (x, y)
        for x, y in line.points
        if math.isfinite(x) and math.isfinite(y) and (y > 0 or not log_y)
    ]
    size = -(-len(points) // MAX_POINTS)
    if size > 1:
        blocks = [points[i : i + size] for i in range(0, len(points), size)]
        points = [(_mean([x for x, _ in b]), _mean([y for _, y in b])) for b in blocks]
    return Line(line.name, points, line.colour, line.width, line.marks)


# --------------------------------------------------------------------------------------- axes


@dataclass(frozen=True)
class _Axes:
    """The ranges of both axes (y as its logarithm if log_y), and where they lie on the page."""

    x: tuple[float, float]
    y: tuple[float, float]
    log_y: bool

    @classmethod
    def around(cls, lines: Sequence[Line], log_y: bool) -> _Axes:
        xs = [x for line in lines for x, _ in line.points]
        ys = [math.log10(y) if log_y else y for line in lines for _, y in line.points]
        low, high = min(ys), max(ys)
        if not log_y:
            low = min(low, 0.0) if low < 0.3 * high or low < 0 else low
        room = 0.06 * (high - low) or 0.1 * abs(high) or 0.1
        x_high = max(xs) if max(xs) > min(xs) else min(xs) + 1
        bottom = low if low == 0 and not log_y else low - room
        return cls((min(xs), x_high), (bottom, high + room), log_y)

    def place(self, x: float, y: float) -> Point:
        """Return the position of a value on the page."""
        y = math.log10(y) if self.log_y else y
        across = (x - self.x[0]) / (self.x[1] - self.x[0])
        up = (y - self.y[0]) / (self.y[1] - self.y[0])
        return (
            round(LEFT + across * (WIDTH - LEFT - RIGHT), 1),
            round(HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM), 1),
        )

    def draw(self, x_label: str) -> str:
        """Return grid lines and their labels."""
        parts, right, floor = [], WIDTH - RIGHT, HEIGHT - BOTTOM
        for value in self._y_ticks():
            y = self.place(self.x[0], value)[1]
            parts.append(
                f'<line x1="{LEFT}" x2="{right}" y1="{y}" y2="{y}" stroke="{GRID}"/>'
                f'<text x="{LEFT - 8}" y="{y + 4}" text-anchor="end" fill="{FAINT}">'
                f"{escape(_label(value))}</text>"
            )
        for value in _ticks(*self.x, 6):
            x = self.place(value, 1.0)[0]
            parts.append(
                f'<text x="{x}" y="{floor + 17}" text-anchor="middle" fill="{FAINT}">'
                f"{escape(_label(value))}</text>"
            )
        parts.append(
            f'<line x1="{LEFT}" x2="{right}" y1="{floor}" y2="{floor}" stroke="{GREY}"/>'
            f'<text x="{right}" y="{floor + 31}" text-anchor="end" fill="{FAINT}">'
            f"{escape(x_label)}</text>"
        )
        return "".join(parts)

    def _y_ticks(self) -> list[float]:
        if not self.log_y:
            return _ticks(*self.y, 5)
        low, high = 10 ** self.y[0], 10 ** self.y[1]
        for steps in ((1.0,), (1.0, 3.0), (1.0, 2.0, 5.0)):
            exponents = range(math.floor(self.y[0]), math.ceil(self.y[1]) + 1)
            ticks = [m * 10.0**e for e in exponents for m in steps if low <= m * 10.0**e <= high]
            if len(ticks) >= 3:
                return ticks[:: -(-len(ticks) // 7)]
        return [tick for tick in _ticks(low, high, 5) if tick > 0]


def _ticks(low: float, high: float, count: int) -> list[float]:
    """Return about `count` round numbers in [low, high]."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next((m * power for m in (1, 2, 2.5, 5) if m * power >= rough * 0.999), 10 * power)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _label(value: float) -> str:
    if abs(value) >= 10_000 or 0 < abs(value) < 0.001:
        return f"{value:.3g}".replace("e+0", "e").replace("e-0", "e-")
    return f"{value:.4g}"


# -------------------------------------------------------------------------------------- lines


def _path(line: Line, axes: _Axes) -> str:
    places = [axes.place(x, y) for x, y in line.points]
    text = " ".join(f"{x},{y}" for x, y in places)
    parts = [
        f'<polyline points="{text}" fill="none" stroke="{line.colour}" '
        f'stroke-width="{line.width}" stroke-linejoin="round"/>'
    ]
    if line.marks or len(places) == 1:
        for (x, y), (step, value) in zip(places, line.points, strict=True):
            tip = f"{line.name}: {value:.4g} at {step:g}"
            parts.append(
                f'<circle cx="{x}" cy="{y}" r="2.6" fill="{line.colour}">'
                f"<title>{escape(tip)}</title></circle>"
            )
    return "".join(parts)


def _legend(lines: Sequence[Line]) -> str:
    if len(lines) < 2:
        return ""
    parts, x = [], float(LEFT)
    for line in lines:
        parts.append(
            f'<line x1="{x}" x2="{x + 16}" y1="38" y2="38" stroke="{line.colour}" '
            f'stroke-width="{max(line.width, 2)}"/>'
            f'<text x="{x + 21}" y="42" fill="{INK}">{escape(line.name)}</text>'
        )
        x += 36 + 6.6 * len(line.name)
    return "".join(parts)
