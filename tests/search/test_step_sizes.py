"""The step sizes that a search gives to its method: the configured ones divided by the steepness of its direction."""

import pytest

from nas_moreau.bilevel import register_method
from nas_moreau.bilevel.methods import METHODS
from nas_moreau.config import load_config
from nas_moreau.errors import InputError
from nas_moreau.search.methods import check_method, search_supernet
from nas_moreau.search.schedules import build_schedules, search_step_sizes


def sizes_of(name, *overrides):
    search = load_config(overrides=["search.weights.lr=0.05", "search.weights.lr_min=0.05", *overrides]).search
    return search_step_sizes(search, build_schedules(search, 10), METHODS[name])


@pytest.mark.parametrize(
    ("overrides", "of_y", "of_theta"),
    [
        ([], 0.5, 0.5),
        (["search.moreau.c=0.25"], 0.2, 0.2),
        (["search.moreau.c=0.25", "search.moreau.weights_lr=0.1"], 2.0, 2.0),
        (["search.moreau.theta_lr=0.2"], 0.5, 4.0),
    ],
)
def test_under_the_envelope_y_learns_as_fast_as_under_other_methods(overrides, of_y, of_theta):
    sizes = sizes_of("moreau", *overrides)
    assert [sizes.beta(k) for k in (0, 7)] == pytest.approx([of_y * 0.05] * 2)
    assert [sizes.eta(k) for k in (0, 7)] == pytest.approx([of_theta * 0.05] * 2)


@pytest.mark.parametrize(
    ("name", "of_y", "inner_steps"),
    [
        ("darts1", 1, 1),
        ("rhg", 1, 10),
        ("v-pbgd", 1 / 4, 1),
        ("bome", 1 / 2, 10),
        ("joint", 3 / 4, 1),
        ("lower-only", 1, 1),
    ],
)
def test_a_penalty_c_is_made_up_for(name, of_y, inner_steps):
    """F + c (f - v) is 1 + c times as steep in y as f, F/c + f (1 + c)/c times."""
    sizes = sizes_of(name, "search.moreau.c=3.0")
    assert sizes.beta(0) == pytest.approx(of_y * 0.05) and sizes.eta(0) == pytest.approx(0.05)
    assert sizes.inner_steps == inner_steps and sizes.update_x is not None


@pytest.mark.parametrize(("name", "of_y", "of_theta"), [("darts1", 1, 1), ("v-pbgd", 1, 1), ("moreau", 1, 4)])
def test_the_steps_of_adamw_do_not_follow_the_length_of_a_direction(name, of_y, of_theta):
    more = ["search.moreau.theta_lr=0.2"] if of_theta == 4 else []
    sizes = sizes_of(name, "search.moreau.c=3.0", "search.weights.rule=adamw", *more)
    assert sizes.beta(0) == pytest.approx(of_y * 0.05) and sizes.eta(0) == pytest.approx(of_theta * 0.05)
    assert sizes.update_y.rescales


@pytest.mark.parametrize("method", ["darts2", "rhg", "implicit-cg", "moreau-auto"])
def test_methods_that_step_by_sgd_refuse_adamw(method):
    with pytest.raises(InputError, match="SGD"):
        check_method(load_config(overrides=[f"search.method={method}", "search.weights.rule=adamw"]))


def test_a_method_of_the_user_gets_the_plain_step_sizes(registrations_forgotten):
    with registrations_forgotten():
        register_method("mine", evaluations=1, source="")(lambda sizes: None)
        sizes = sizes_of("mine")
    assert sizes.beta(3) == 0.05 and sizes.alpha(3) == 3e-4 and sizes.c == 1.0


def test_constants_of_the_paper_are_refused():
    with pytest.raises(InputError, match="meha_paper"):
        check_method(load_config(overrides=["search.method=moreau-paper"]))


@pytest.mark.parametrize("setting", ["compile", "activation_checkpointing"])
def test_methods_with_second_derivatives_refuse_what_has_none(setting, tiny_config):
    override = f"performance.{setting}=true"
    with pytest.raises(InputError, match=setting):
        check_method(tiny_config("search.method=rhg", override))
    check_method(tiny_config("search.method=moreau", override))


def test_methods_with_second_derivatives_get_portable_kernels(tiny_config):
    from nas_moreau.architecture import load_space
    from nas_moreau.architecture.networks.mixed_cell import MixedCell

    for name, kernels in (("implicit-cg+beta", "portable"), ("moreau+beta", "auto")):
        supernet = search_supernet(load_space("toy"), tiny_config(f"search.method={name}").search, 3, 3)
        cells = [part for part in supernet.modules() if isinstance(part, MixedCell)]
        assert cells and all(cell.kernels == kernels for cell in cells)
