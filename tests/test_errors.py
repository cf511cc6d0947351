"""Messages of mistakes: the nearest name, one line whatever was handed in, bounded quotations."""

import pytest

from nas_moreau.errors import InputError, did_you_mean, first_line, meant, nearest, quoted, unknown

NAMES = ["cifar10", "fashion_mnist", "moreau-jacobi", "DARTS_V2"]


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("cifar", "cifar10"),
        ("fashion-mnist", "fashion_mnist"),
        ("moreau_jacoby", "moreau-jacobi"),
        ("darts_v3", "DARTS_V2"),
        ("quaternion", None),
        ("", None),
        (5, None),
    ],
)
def test_the_nearest_name_ignores_case_and_dashes(name, found):
    assert nearest(name, NAMES) == found
    assert meant(name, NAMES) == (f" (did you mean '{found}'?)" if found else "")
    assert (f"'{found}'" if found else "fashion_mnist, moreau-jacobi") in did_you_mean(name, NAMES)


def test_an_unknown_name_is_quoted_with_its_cure():
    error = unknown("data set", "cifar", NAMES)
    assert isinstance(error, InputError) and "'cifar'" in error.cause and "'cifar10'" in error.cure
    assert str(error) == f"{error.cause} {error.cure}"


def test_an_error_is_one_printable_line():
    assert str(InputError("a\nb\x1b[31m", "c\td")) == r"a\nb\x1b[31m c\td"


def test_quotations_are_bounded():
    assert len(quoted("x" * 1000)) <= 60 and quoted(10**400) == "a huge integer" and quoted([1]) == "a list"
    assert first_line(ValueError("first\nsecond")) == "first" and first_line(ValueError()) == "ValueError"
