"""Draws loss curves with characters (braille or ASCII), and keeps a history of losses."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise

Points = Sequence[tuple[float, float]]

BRAILLE = 0x2800
# The dots of a braille cell as (left column, right column), from the top row to the bottom row.
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
# The ASCII characters for three heights within a cell.
_MARKS = "'-."
# How far the start of a curve can raise the top of the chart. The unit is the distance from the
# lowest of all values to the highest value in the last three quarters of the curves.
ROOM_FOR_START = 0.35


class LossHistory:
    """A history of pairs (step, value) in bounded memory. `add` takes O(1) amortised time.

    Buckets of equal size hold the mean of consecutive values. When all buckets are full,
    neighbouring buckets are merged in pairs. Values that are not finite are left out.
    """

    def __init__(self, capacity: int = 1024) -> None:
        assert capacity > 0
        assert capacity % 2 == 0
        self._capacity = capacity
        self._stride = 1  # values in a full bucket
        self._full: list[tuple[float, float]] = []  # mean step, mean value
        self._steps = self._values = 0.0  # sums in the bucket that is being filled
        self._count = 0

    def add(self, step: int, value: float) -> None:
        """Append a value."""
        if not math.isfinite(value):
            return
        self._steps += step
        self._values += value
        self._count += 1
        if self._count < self._stride:
            return
        self._full.append((self._steps / self._count, self._values / self._count))
        self._steps = self._values = 0.0
        self._count = 0
        if len(self._full) >= self._capacity:
            pairs = zip(self._full[::2], self._full[1::2], strict=True)
            self._full = [((a + b) / 2, (u + v) / 2) for (a, u), (b, v) in pairs]
            self._stride *= 2

    def points(self) -> list[tuple[float, float]]:
        """The pair (mean step, mean value) of each bucket. The last bucket can be partly full."""
        if not self._count:
            return list(self._full)
        return [*self._full, (self._steps / self._count, self._values / self._count)]


def resample(points: Points, columns: int, first: float, last: float) -> list[float]:
    """The mean value near each of `columns` evenly spaced steps, from `first` to `last`.

    Each point counts for the nearest of these steps. A step without a point gets a linear
    interpolation between its neighbours. Steps before the first point and after the last point get
    nan.
    """
    sums = [0.0] * columns
    counts = [0] * columns
    scale = (columns - 1) / (last - first) if last > first else 0.0
    for x, y in points:
        if first <= x <= last and math.isfinite(y):
            column = round((x - first) * scale)
            sums[column] += y
            counts[column] += 1
    values = [s / n if n else math.nan for s, n in zip(sums, counts, strict=True)]
    known = [column for column, n in enumerate(counts) if n]
    for left, right in pairwise(known):
        for column in range(left + 1, right):
            part = (column - left) / (right - left)
            values[column] = values[left] + part * (values[right] - values[left])
    return values


def means(points: Points, parts: int) -> Points:
    """At most `parts` points: the mean in each of `parts` equal parts of the range of steps."""
    if len(points) <= parts:
        return points
    first, last = points[0][0], points[-1][0]
    groups: dict[int, list[tuple[float, float]]] = {}
    for x, y in points:
        part = int((x - first) / (last - first) * parts) if last > first else 0
        groups.setdefault(min(part, parts - 1), []).append((x, y))
    return [
        (sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group))
        for group in groups.values()
    ]


def bounds(*curves: Sequence[float], with_ends: bool = False) -> tuple[float, float]:
    """The lowest and the highest value of the vertical axis.

    Each curve has one value for each column of the chart. The value is not finite if the curve has
    no point there.

    The steep start of a training does not set the top of the axis. A new model's loss falls from
    ln V, and would press the rest of the curve into the bottom rows. The top is the highest value
    of the last three quarters, plus some room for the first quarter. With `with_ends`, the range
    also includes the last value of each curve, so that a short run stays visible beside long ones.
    The range is never empty. It is (0, 1) if no value is finite.
    """
    everything = _finite(curves, 0.0)
    if not everything:
        return 0.0, 1.0
    low, high = min(everything), max(everything)
    later = max(_finite(curves, 0.25) or everything)
    room = ROOM_FOR_START * (later - low)
    if later < high:
        high = max(later, min(max(_finite(curves, 0.1) or everything), later + room))
    if with_ends:
        high = max(high, *(found[-1] for c in curves if (found := _finite([c], 0.0))))
    margin = 0.02 * max(abs(low), abs(high), 1.0)
    if high - low < margin:  # a (nearly) constant curve is drawn in the middle
        middle = (low + high) / 2
        return middle - margin, middle + margin
    return low, high


def _finite(curves: Iterable[Sequence[float]], begin: float) -> list[float]:
    """All finite values in `curves`. `begin` is the fraction to leave out at each curve's start."""
    return [v for c in curves for v in c[math.ceil(begin * len(c)) :] if math.isfinite(v)]


def overlay(layers: Sequence[str]) -> tuple[str, list[int | None]]:
    """Merge one row of each curve into one row.

    Returns the row's text, and the index of each cell's last curve (None for an empty cell). In
    braille, the dots of several curves share a cell. In ASCII, the later curve's character
    stays."""
    cells, owners = list(layers[0]), [0 if cell != " " else None for cell in layers[0]]
    for number, layer in enumerate(layers[1:], 1):
        for column, cell in enumerate(layer):
            if cell == " ":
                continue
            both = min(ord(cells[column]), ord(cell)) > BRAILLE
            cells[column] = chr(ord(cells[column]) | ord(cell)) if both else cell
            owners[column] = number
    return "".join(cells), owners


def dots_per_cell(ascii_only: bool) -> tuple[int, int]:
    """The number of dots in one character: (columns, rows)."""
    return (1, 3) if ascii_only else (2, 4)


def dot_row(value: float, low: float, high: float, rows: int) -> int:
    """The row of dots in which a value is drawn, counted from the top.

    Returns -1 if the value is above `high`, and `rows` if it is below `low`. If the range is empty,
    returns the middle row.
    """
    share = (value - low) / (high - low) if high > low else 0.5
    return -1 if share > 1 else rows if share < 0 else rows - 1 - round(share * (rows - 1))


def curve(
    values: Sequence[float],
    width: int,
    height: int,
    *,
    low: float | None = None,
    high: float | None = None,
    ascii_only: bool = False,
    dotted: bool = False,
) -> list[str]:
    """Draw equally spaced values as `height` strings, each of exactly `width` characters.

    A braille character has two columns and four rows of dots. An ASCII character has one column and
    three heights. Lines join neighbouring values. A line to a value outside [low, high] (default:
    `bounds(values)`) ends at the edge. Values that are not finite are not drawn. `dotted` draws
    only every second column of dots or every second ASCII character.
    """
    if width < 1 or height < 1:
        return [""] * max(0, height)
    if low is None or high is None:
        low, high = bounds(values)
    across, down = dots_per_cell(ascii_only)
    columns, rows = width * across, height * down
    if len(values) != columns:
        values = resample(list(enumerate(values)), columns, 0, len(values) - 1)
    cells = [[0] * width for _ in range(height)]
    previous: int | None = None
    for column, value in enumerate(values):
        if not math.isfinite(value):
            previous = None
            continue
        row = dot_row(value, low, high, rows)
        start, stop = row, row
        if previous is not None and abs(previous - row) > 1:
            # Draw a line to the previous value. Its dot is already drawn.
            start, stop = (previous + 1, row) if previous < row else (row, previous - 1)
        for y in range(max(start, 0), min(stop, rows - 1) + 1):
            if ascii_only:
                mark = _MARKS[y % down] if y == row else "|"
                if cells[y // down][column] == 0 or mark != "|":
                    cells[y // down][column] = ord(mark)
            else:
                cells[y // down][column // across] |= _DOTS[y % down][column % across]
        previous = row
    if dotted:
        cells = [[_dotted(code, column, ascii_only) for column, code in enumerate(line)]
                 for line in cells]  # fmt: skip
    if ascii_only:
        return ["".join(chr(code or 32) for code in line) for line in cells]
    return ["".join(chr(BRAILLE + code) if code else " " for code in line) for line in cells]


def _dotted(code: int, column: int, ascii_only: bool) -> int:
    if ascii_only:
        return code if column % 2 == 0 else 0
    return code & 0x47  # the left column of dots
