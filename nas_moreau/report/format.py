"""Numbers as a person reads them, on pages and on the terminal. Values that are missing are a dash."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean, stdev

from nas_moreau import text

DASH = "–"


def percent(value: float | None, digits: int = 2) -> str:
    """Returns a fraction in per cent, with the sign: "93.21 %"."""
    return DASH if value is None else f"{100 * value:.{digits}f} %"


def cent(value: float | None) -> str:
    """Returns a fraction in per cent with two digits and without the sign, for columns that have it in their head."""
    return DASH if value is None else f"{100 * value:.2f}"


def spread(middle: float, std: float | None) -> str:
    """Returns mean ± standard deviation of fractions in per cent, without the sign; the mean alone for None."""
    return cent(middle) if std is None else f"{cent(middle)} ± {cent(std)}"


def mean_and_spread(values: Sequence[float]) -> str:
    """Returns mean ± sample standard deviation of fractions: "93.00 ± 3.61 %"."""
    return spread(mean(values), stdev(values) if len(values) > 1 else None) + " %"


def number(value: float | None, form: str = ".2f") -> str:
    """Returns a number in the form of a format specification."""
    return DASH if value is None else format(value, form)


def p_value(value: float | None) -> str:
    """Returns a p-value with three digits, "< 0.001" below that."""
    return DASH if value is None else f"{value:.3f}" if value >= 0.001 else "< 0.001"


def count(value: float | None) -> str:
    """Returns a count with three significant digits and M or G, or in full below a million."""
    if value is None:
        return DASH
    for unit, size in (("G", 1e9), ("M", 1e6)):
        if value >= size:
            return f"{value / size:.2f} {unit}"
    return f"{value:,.0f}"


def duration(seconds: float | None, digits: int = 1) -> str:
    """Returns a time in seconds (below a minute, with that many digits), minutes or hours."""
    return DASH if seconds is None else text.duration(seconds, digits)


def memory(value: float | None) -> str:
    """Returns bytes in MiB or GiB."""
    if value is None:
        return DASH
    return f"{value / 2**30:.2f} GiB" if value >= 2**30 else f"{value / 2**20:.0f} MiB"


def ranges(numbers: Sequence[int]) -> str:
    """Returns "0-3, 7" for 0, 1, 2, 3, 7."""
    parts: list[list[int]] = []
    for value in numbers:
        if parts and value == parts[-1][-1] + 1:
            parts[-1].append(value)
        else:
            parts.append([value])
    return ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)


def listed(names: Sequence[str]) -> str:
    """Returns "a, b and c"."""
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]
