"""Problems made to mislead a solver: constants and units, domains, plateaus, maxima, moving sets, mixed types."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gallery.posed import F64, Posed, posed, scalar_minimum, t, zeros
from nas_moreau.bilevel import Bilevel
from nas_moreau.bilevel.prox import L1, SCAD, project_box


def square(tensor: Tensor) -> Tensor:
    """Returns the sum of squares."""
    return tensor.square().sum()


def follows(F, **parts) -> Bilevel:  # type: ignore[no-untyped-def]
    """Returns a problem with y* = x."""
    return Bilevel(F, lambda x, y, batch: 0.5 * square(y[0] - x[0]), **parts)


@posed
def large_constant() -> Posed:
    """F = 1e8 + ...: differences of F are rounding error near the answer."""
    problem = follows(lambda x, y, batch: 1e8 + square(y[0] - 1) + square(x[0]))
    return Posed(problem, [t(2.0)], [t(1.0)], [[t(0.5)]], frozenset({"smooth", "scaled"}))


@posed
def tiny_objectives() -> Posed:
    problem = Bilevel(
        F=lambda x, y, batch: 1e-12 * (0.5 * square(y[0] - 1) + 0.5 * square(x[0])),
        f=lambda x, y, batch: 0.5e-10 * square(y[0] - x[0]),
    )
    return Posed(problem, [t(3.0)], [t(0.0)], [[t(0.5)]], frozenset({"smooth", "scaled"}))


@posed
def huge_x() -> Posed:
    """x is of the order of a million: y* = x / 1e6."""
    problem = Bilevel(
        F=lambda x, y, batch: 0.5 * square(y[0] - t(1.0, 2.0)) + 5e-14 * square(x[0]),
        f=lambda x, y, batch: 0.5 * square(y[0] - 1e-6 * x[0]),
    )
    return Posed(problem, [zeros(2)], [zeros(2)], [[t(1.0, 2.0) * 1e6 / 1.1]], frozenset({"smooth", "scaled"}))


@posed
def logarithm_of_x() -> Posed:
    """y* = log x: a step to negative x leaves the domain."""
    problem = Bilevel(lambda x, y, batch: square(y[0] - 1), lambda x, y, batch: 0.5 * square(y[0] - x[0].log()))
    return Posed(problem, [t(0.1)], [t(0.0)], [[t(math.e)]], frozenset({"smooth"}))


@posed
def logarithm_below() -> Posed:
    """f = e^x y - log y: y* = e^-x, the domain of f is y > 0."""
    exact = scalar_minimum(lambda u: ((-u).exp() - 1.5) ** 2 + 0.1 * u**2, -3.0, 3.0)
    problem = Bilevel(
        lambda x, y, batch: square(y[0] - 1.5) + 0.1 * square(x[0]),
        lambda x, y, batch: (y[0] * x[0].exp() - y[0].log()).sum(),
    )
    return Posed(problem, [t(2.0)], [t(1.0)], [[t(exact)]], frozenset({"smooth"}))


@posed
def maximum_above() -> Posed:
    """Phi = (x^2 - 1)^2 from its maximum."""
    problem = follows(lambda x, y, batch: (square(y[0]) - 1) ** 2)
    return Posed(problem, [t(0.0)], [t(0.0)], [[t(1.0)], [t(-1.0)]], frozenset({"smooth", "basins"}))


@posed
def maximum_on_a_box() -> Posed:
    problem = follows(lambda x, y, batch: -square(y[0]), project_x=project_box(-1.0, 1.0))
    kinds = frozenset({"constrained", "basins"})
    return Posed(problem, [t(0.0)], [t(0.0)], [[t(1.0)], [t(-1.0)]], kinds, baseline=False)


@posed
def saddle_on_a_box() -> Posed:
    problem = follows(lambda x, y, batch: y[0][0] ** 2 - y[0][1] ** 2, project_x=project_box(-1.0, 1.0))
    kinds = frozenset({"constrained", "basins"})
    return Posed(problem, [t(0.5, 0.0)], [zeros(2)], [[t(0.0, 1.0)], [t(0.0, -1.0)]], kinds, baseline=False)


@posed
def maximum_of_a_box_below() -> Posed:
    """f falls towards the edges of [-1, 1]; the start is its maximum. y* = 1 for x > 0; F prefers x = 1."""
    problem = Bilevel(
        lambda x, y, batch: square(y[0] - 0.5) + square(x[0] - 1),
        lambda x, y, batch: (-0.5 * square(y[0]) - 0.1 * x[0] * y[0]).sum(),
        project_y=project_box(-1.0, 1.0),
    )
    kinds = frozenset({"constrained", "basins"})
    return Posed(problem, [t(0.0)], [t(0.0)], [[t(1.0)]], kinds, baseline=False)


@posed
def wavy_above() -> Posed:
    """Several minima of Phi; the lowest is x = 4."""
    problem = follows(lambda x, y, batch: 0.1 * square(y[0] - 4) + (1 - torch.cos(3 * (y[0] - 4))).sum())
    return Posed(problem, [t(0.0)], [t(0.0)], [[t(4.0)]], frozenset({"smooth", "basins"}))


@posed
def squared_hinge_below() -> Posed:
    """f = relu(y - x)^2 + .05 (y - x + 1)^2: its second derivative jumps. y* = x - 1."""
    problem = Bilevel(
        lambda x, y, batch: 0.5 * square(y[0] - 1) + 0.05 * square(x[0]),
        lambda x, y, batch: square(torch.relu(y[0] - x[0])) + 0.05 * square(y[0] - x[0] + 1),
    )
    return Posed(problem, [t(0.5)], [t(0.0)], [[t(2 / 1.1)]], frozenset({"kinked"}))


@posed
def huber_below() -> Posed:
    """f = huber(y - 3 x) + .01 y^2: y* = 3 x / 1.02 while 3 x < 51."""
    slope = 3 / 1.02
    problem = Bilevel(
        lambda x, y, batch: 0.5 * square(y[0] - 1) + 0.05 * square(x[0]),
        lambda x, y, batch: torch.nn.functional.huber_loss(y[0], 3 * x[0]) + 0.01 * square(y[0]),
    )
    return Posed(problem, [t(0.5)], [t(0.0)], [[t(slope / (slope**2 + 0.1))]], frozenset({"kinked"}))


@posed
def absolute_value_below() -> Posed:
    """f = |y - x| + .05 (y - x)^2: the minimum is a kink of f; y* = x."""
    problem = Bilevel(
        lambda x, y, batch: 0.5 * square(y[0] - 1) + 0.05 * square(x[0]),
        lambda x, y, batch: (y[0] - x[0]).abs().sum() + 0.05 * square(y[0] - x[0]),
    )
    return Posed(problem, [t(0.5)], [t(0.0)], [[t(1 / 1.1)]], frozenset({"kinked"}), baseline=False)


@posed
def flat_direction() -> Posed:
    """f does not look at the second entry of y, F does."""
    problem = Bilevel(
        lambda x, y, batch: square(y[0] - t(1.0, 3.0)) + 0.1 * square(x[0]),
        lambda x, y, batch: 0.5 * (y[0][0] - x[0][0]) ** 2,
    )
    return Posed(problem, [t(0.0)], [zeros(2)], [[t(1 / 1.1)]], frozenset({"smooth", "flat"}), baseline=False)


@posed
def flat_within_a_box() -> Posed:
    """A line of minimisers cut by a box: F chooses on it. y sums to x; least |y - (.3, .2)|^2 + (x - .7)^2."""
    problem = Bilevel(
        lambda x, y, batch: square(y[0] - t(0.3, 0.2)) + square(x[0] - 0.7),
        lambda x, y, batch: 0.5 * (y[0].sum() - x[0].sum()) ** 2,
        project_y=project_box(0.0, 1.0),
    )
    return Posed(problem, [t(0.0)], [zeros(2)], [[t(1.9 / 3)]], frozenset({"constrained", "flat"}), baseline=False)


@posed
def scad_penalty() -> Posed:
    """g weakly convex: beyond a * strength SCAD is constant, so y1* = 2 x, and y2* = 0."""
    problem = Bilevel(
        lambda x, y, batch: 0.5 * square(y[0] - t(1.8, 0.0)) + 0.5 * square(x[0] - 1),
        lambda x, y, batch: 0.5 * square(y[0] - t(2.0, 0.1) * x[0]),
        g=SCAD(0.2),
    )
    return Posed(problem, [t(0.5)], [zeros(2)], [[t(4.6 / 5)]], frozenset({"nonsmooth"}), baseline=False)


@posed
def lasso_weights() -> Posed:
    """A weight for every entry: y_i* = soft(v_i, e^x_i), and F wants y = (1, -1) with a prior on the weights."""
    v = t(1.5, -2.0)

    def weight(value: float, wanted: float) -> float:
        return scalar_minimum(lambda u: 0.5 * (value - u.exp() - wanted) ** 2 + 0.01 * u**2, -4.0, 0.2)

    problem = Bilevel(
        lambda x, y, batch: 0.5 * square(y[0] - t(1.0, -1.0)) + 0.01 * square(x[0]),
        lambda x, y, batch: 0.5 * square(y[0] - v),
        g=L1(weight=lambda x: [x[0].exp()]),
    )
    exact = [t(weight(1.5, 1.0), weight(2.0, 1.0))]
    return Posed(problem, [t(-2.0, -2.0)], [zeros(2)], [exact], frozenset({"nonsmooth"}), baseline=False)


@posed
def moving_bound() -> Posed:
    """y >= x as a projection that sees x."""
    problem = Bilevel(
        lambda x, y, batch: 0.5 * square(x[0] - 1) + 0.5 * square(y[0]),
        lambda x, y, batch: 0.5 * square(y[0]),
        project_y=lambda x, y: [torch.maximum(y[0], x[0])],
    )
    return Posed(problem, [t(0.0)], [t(0.0)], [[t(0.5)]], frozenset({"coupled", "constrained"}), baseline=False)


@posed
def coupled_units() -> Posed:
    """The budget of three entries with h in thousandths: sum(y) <= x / 1000."""
    problem = Bilevel(
        lambda x, y, batch: 0.5 * square(x[0] / 1000 - 4) + 0.5 * square(y[0]),
        lambda x, y, batch: 0.5 * square(y[0] - 2),
        constraint=lambda x, y: 1e-3 * (y[0].sum() - x[0] / 1000),
    )
    kinds = frozenset({"coupled", "constrained", "scaled"})
    return Posed(problem, [t(1000.0)], [zeros(3)], [[t(3000.0)]], kinds, baseline=False)


@posed
def coupled_vertex() -> Posed:
    """A linear program below: max y1 + 2 y2 with y >= 0, y1 + y2 <= x, y2 <= 1: y* = (x - 1, 1) for x >= 1."""
    problem = Bilevel(
        lambda x, y, batch: square(y[0] - t(1.0, 1.0)) + 0.5 * square(x[0] - 3),
        lambda x, y, batch: -(y[0][0] + 2 * y[0][1]) + 0 * x[0].sum(),
        constraint=lambda x, y: torch.stack([-y[0][0], -y[0][1], y[0].sum() - x[0][0], y[0][1] - 1]),
    )
    # (x - 2)^2 + (x - 3)^2 / 2
    kinds = frozenset({"coupled", "constrained"})
    return Posed(problem, [t(1.5)], [t(0.2, 0.2)], [[t(7 / 3)]], kinds, baseline=False)


@posed
def mixed_types() -> Posed:
    """One tensor of each level in float32, and both objectives return more than their value."""
    problem = Bilevel(
        lambda x, y, batch: (square(y[0] - 1) + square(x[0]) + square(x[1] - 2), {"seen": x[0]}),
        lambda x, y, batch: (0.5 * square(y[0] - x[0]) + 0.5 * square(y[1] - x[1]), None),
    )
    exact = [t(0.5), t(2.0, 2.0)]
    return Posed(
        problem, [t(2.0), torch.zeros(2)], [t(1.0), torch.zeros(2)], [exact], frozenset({"float32"}), baseline=False
    )


@posed
def flat_large() -> Posed:
    """1,000 entries of y, of which f determines half."""
    problem = Bilevel(
        lambda x, y, batch: square(y[0] - x[0][0]) + square(x[0] - 1),
        lambda x, y, batch: 0.5 * square(y[0][:500] - x[0].sum()),
    )
    kinds = frozenset({"smooth", "flat", "large"})
    start = torch.zeros(1000, dtype=F64)
    return Posed(problem, [t(0.0)], [start], [[t(1.0)]], kinds, baseline=False)
