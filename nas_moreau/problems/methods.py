"""Bilevel methods by name, with step sizes that suit a case, from curvatures as for `moreau`'s automatic constants."""

from __future__ import annotations

from collections.abc import Callable

from nas_moreau.bilevel import Method, moreau
from nas_moreau.bilevel.automatic.curvature import Curvature
from nas_moreau.bilevel.automatic.measured import FIRST_CONVEX, SAFETY, begin
from nas_moreau.bilevel.rivals.darts import darts1, darts2
from nas_moreau.bilevel.rivals.hypergradient import implicit_cg, neumann, rhg
from nas_moreau.bilevel.rivals.penalties import bome, f2sa, fixed_penalty, v_pbgd
from nas_moreau.problems.synthetic import Case


def _lower(L: Curvature) -> float:
    """.8 over the Lipschitz constant of the lower level's gradient in y."""
    return SAFETY / max(L.f_yy, 1e-12)


def _reduced(L: Curvature) -> float:
    """.8 over a bound on the curvature of F(x, y*(x)), with |dy*/dx| taken as phi_xy / f_yy."""
    return SAFETY / max(L.F_xx + L.F_yy * (L.phi_xy / max(L.f_yy, 1e-12)) ** 2, 1e-12)


def _weight(L: Curvature) -> float:
    """The c from which `moreau` starts on a convex lower level."""
    return FIRST_CONVEX * (L.F / L.phi if L.F > 0 else L.F_slope / max(L.phi_slope, 1e-12))


def _penalised(L: Curvature, weight: float) -> tuple[float, float]:
    """alpha and beta for F + weight * (f - v)."""
    bend_x = max(L.f_xx, L.phi_xy**2 / max(L.f_yy, 1e-12))
    return SAFETY / (L.F_xx + weight * bend_x), SAFETY / (L.F_yy + weight * L.f_yy)


def _f2sa(L: Curvature) -> Method:
    def weight(k: int) -> float:
        return _weight(L) * (1 + k / 100) ** 0.25

    return f2sa(lambda k: _penalised(L, weight(k))[0], lambda k: _penalised(L, weight(k))[1], _lower(L), weight)


def _fixed(L: Curvature) -> Method:
    weight = _weight(L) / max(L.f_yy, 1e-12)
    step = SAFETY / (L.F + weight * L.phi**2)
    return fixed_penalty(step, step, weight)


def _bome(L: Curvature) -> Method:
    step = SAFETY / (L.F + L.phi)
    return bome(step, step, _lower(L))


RIVALS: dict[str, Callable[[Curvature], Method]] = {
    "darts1": lambda L: darts1(SAFETY / max(L.F_xx, 1e-12), _lower(L)),
    "darts2": lambda L: darts2(_reduced(L), _lower(L)),
    "rhg": lambda L: rhg(_reduced(L), _lower(L), 20),
    "rhg-truncated": lambda L: rhg(_reduced(L), _lower(L), 20, truncate=5),
    "implicit-cg": lambda L: implicit_cg(_reduced(L), _lower(L), 10, 10),
    "neumann": lambda L: neumann(_reduced(L), _lower(L), 10, 20),
    "bome": _bome,
    "f2sa": _f2sa,
    "v-pbgd": lambda L: v_pbgd(*_penalised(L, _weight(L)), _lower(L), _weight(L)),
    "fixed-penalty": _fixed,
}
"""Name -> curvatures -> method."""

MOREAU: dict[str, Callable[[Case], Method]] = {
    "moreau": lambda case: moreau(order="lagged"),
    "moreau-gauss-seidel": lambda case: moreau(order="gauss-seidel"),
    "moreau-jacobi": lambda case: moreau(order="jacobi"),
    "moreau-lagged": lambda case: moreau(order="lagged"),
    "moreau-paper": lambda case: moreau(**case.paper),
}
"""Name -> case -> method; the last has the constants that the paper prints."""

METHODS = (*MOREAU, *RIVALS)


def method_for(name: str, case: Case) -> Method:
    """Returns the method of that name with step sizes for the case.

    Raises:
        KeyError: There is no such method.
    """
    if name in MOREAU:
        return MOREAU[name](case)
    build = RIVALS[name]
    return build(begin(case.problem, case.x, case.y).curvature)
