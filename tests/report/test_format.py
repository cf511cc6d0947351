"""Numbers as a person reads them."""

import pytest

from nas_moreau.report.format import (
    DASH,
    cent,
    count,
    duration,
    listed,
    memory,
    number,
    p_value,
    percent,
    ranges,
    spread,
)
from nas_moreau.report.significance import ranking


@pytest.mark.parametrize(
    ("form", "value", "text"),
    [
        (duration, 0.04, "0.0 s"),
        (duration, 59.9, "59.9 s"),
        (duration, 59.96, "1 min 00 s"),
        (duration, 61, "1 min 01 s"),
        (duration, 3599.6, "1 h 00 min"),
        (duration, 7322, "2 h 02 min"),
        (count, 950, "950"),
        (count, 73306, "73,306"),
        (count, 3169414, "3.17 M"),
        (count, 1.25e9, "1.25 G"),
        (memory, 5 << 20, "5 MiB"),
        (memory, 3 << 29, "1.50 GiB"),
        (percent, 0.125, "12.50 %"),
        (cent, 0.125, "12.50"),
        (number, 0.125, "0.12"),
        (p_value, 0.0004, "< 0.001"),
        (p_value, 0.1, "0.100"),
    ],
)
def test_numbers(form, value, text):
    assert form(value) == text and form(None) == DASH


def test_texts_of_several_numbers():
    assert percent(0.875, 0) == "88 %"
    assert spread(0.5, 0.125) == "50.00 ± 12.50" and spread(0.5, None) == "50.00"
    assert ranges([0, 1, 2, 3, 7]) == "0-3, 7" and ranges([]) == ""
    assert listed(["a", "b", "c"]) == "a, b and c" and listed(["a"]) == "a"


def test_the_ranking_names_the_best_and_whether_it_can_be_told_from_the_next():
    (alone,) = ranking("accuracy", {"a": [0.9, 0.92, 0.97]})
    assert "a" in alone and "93.00 ± 3.61 %" in alone and "3" in alone
    best, second = ranking("accuracy", {"a": [0.5, 0.6], "b": [0.7, 0.8], "c": [0.1]})
    # one of the three ways (and their mirrors) to divide four values
    assert best.index("b") < best.index("75.00 ± 7.07 %") and "20.00 points" in second and "p 0.333" in second
    # 7.849 (.005 + .03125) / .125^2 = 18.2
    assert " 19 runs" in ranking("accuracy", {"a": [0.5, 0.6], "b": [0.55, 0.8]})[1]
    clear = ranking("accuracy", {"a": [0.1, 0.2, 0.3, 0.4], "b": [0.6, 0.7, 0.8, 0.9]})[1]
    assert "p 0.029" in clear and "runs" not in clear
    assert "p " not in ranking("accuracy", {"a": [0.5], "b": [0.55, 0.8]})[1]
