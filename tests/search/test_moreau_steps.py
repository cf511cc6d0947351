"""The step of y in a search by the envelope method: F/c + f is (1+c)/c times as steep as f alone."""

import pytest

from nas_moreau.config import load_config
from nas_moreau.search import methods


@pytest.mark.parametrize(
    ("words", "of_y", "of_theta"),
    [
        ([], 0.5, 0.5),
        (["search.moreau.c=0.25"], 0.2, 0.2),
        (["search.moreau.c=0.25", "search.moreau.weights_lr=0.1"], 2.0, 2.0),
        (["search.moreau.theta_lr=0.2"], 0.5, 4.0),
    ],
)
def test_y_takes_the_share_of_the_step_that_leaves_it_as_fast_as_its_rivals(words, of_y, of_theta, monkeypatch):
    given = {}
    monkeypatch.setattr(methods, "moreau", lambda **constants: given.update(constants))
    settings = load_config(overrides=["search.weights.lr=0.05", "search.weights.lr_min=0", *words]).search
    _, rules = methods.build_method(settings, 10)
    for k in (0, 9, 10, 250):
        assert given["beta"](k) == pytest.approx(of_y * rules.weights_lr(k), rel=1e-12)
        assert given["eta"](k) == pytest.approx(of_theta * rules.weights_lr(k), rel=1e-12)
    assert given["beta"](0) == pytest.approx(of_y * 0.05)
