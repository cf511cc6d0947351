"""The one table of bilevel methods. What uses a method (a task, a search, a check) supplies its step sizes, no more.

    @register_method("mine", evaluations=2, source="A. Author, CONF 2026, Algorithm 1")
    def build(sizes: StepSizes) -> Method:
        return darts1(sizes.alpha, sizes.beta, sizes.update_x, sizes.update_y)

makes a method available in `solve`, in a search (`search.method=mine+beta`), in `compare`, `check-hypergradient` and
`bench`; from a file of the user by `--import FILE`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from nas_moreau.bilevel.method import Method, StepSizes, at, penalty_at
from nas_moreau.bilevel.moreau_envelope import moreau
from nas_moreau.bilevel.rivals.darts import darts1, darts2, joint, y_alone
from nas_moreau.bilevel.rivals.hypergradient import implicit_cg, neumann, rhg
from nas_moreau.bilevel.rivals.penalties import bome, f2sa, fixed_penalty, v_pbgd
from nas_moreau.bilevel.rivals.two_sided import two_sided

Build = Callable[[StepSizes], Method]
Count = int | Callable[[StepSizes], int]

NEEDS = {
    "automatic": "constants are found by the method: alpha, beta, eta, gamma and c may be 'auto'",
    "barrier": "alpha and beta are those of F + lambda (f - v), lambda of order 1",
    "envelope": "beta is that of F/c_k + f, and eta acts under update_theta",
    "gradient penalty": "alpha and beta are those of F + c/2 |grad_y f|^2",
    "joint": "beta is that of F/c_k + f",
    "hessian": "second derivatives of f: no nonsmooth lower level, no native kernels, one process",
    "inner loop": "inner_steps is more than 1",
    "penalty": "alpha and beta are those of F + c (f - v)",
    "published": "the constants that the paper prints for the problem",
}
"""What a method can need of its step sizes and of the problem. Without "barrier", "envelope", "joint" or a penalty,
alpha is that of the hypergradient and beta that of f."""

TRUNCATION = 4
"""`rhg-truncated` differentiates the last quarter of its inner steps."""


class MethodInfo(NamedTuple):
    """A bilevel method of the table.

    Attributes:
        name: On the command line and in a configuration.
        build: Step sizes -> method.
        evaluations: Gradient evaluations of one step, forward and backward, or a function of the step sizes; a product
            with a Hessian is one evaluation.
        needs: Keys of `NEEDS`.
        source: Where the method is published.
        capturable: See `register_method`.
    """

    name: str
    build: Build
    evaluations: Count
    needs: frozenset[str]
    source: str
    capturable: bool = False

    def count(self, sizes: StepSizes) -> int:
        """Returns the gradient evaluations of one step with these step sizes."""
        return self.evaluations(sizes) if callable(self.evaluations) else self.evaluations


METHODS: dict[str, MethodInfo] = {}
"""Name -> method."""


def register_method(
    name: str, *, evaluations: Count, source: str, needs: Sequence[str] = (), capturable: bool = False
) -> Callable[[Build], Build]:
    """Makes a bilevel method known by name; the decorated function builds it from `StepSizes`.

    Args:
        name: Free, without '+'.
        evaluations: Gradient evaluations of one step, or a function of the step sizes; budgets are divided by it.
        source: Where the method is published: authors, venue, algorithm or equation.
        needs: Keys of `NEEDS`. A method without any gets the step sizes of the hypergradient (alpha) and of f (beta).
        capturable: Whether a step can be recorded once and replayed on an accelerator: after the first step all of them
            do the same operations, none reads a number back, and k is used through the step sizes alone. These may
            then be 0-dim tensors.

    Raises:
        ValueError: The name is taken or contains '+', or a need is unknown.
    """
    if name in METHODS or "+" in name:
        raise ValueError(f"A method cannot be named '{name}'; choose a free name without '+'.")
    if unknown := set(needs) - set(NEEDS):
        raise ValueError(f"Unknown need '{sorted(unknown)[0]}'; known are {', '.join(NEEDS)}.")

    def register(build: Build) -> Build:
        METHODS[name] = MethodInfo(name, build, evaluations, frozenset(needs), source, capturable)
        return build

    return register


# --- this package's methods -------------------------------------------------------------------------------------------

_MEHA = "Liu et al., ICML 2024, Algorithm 1"
_ENVELOPE: dict[str, tuple[str, int, tuple[str, ...], str]] = {
    # the lagged order first: one evaluation at (x, theta) on a fresh batch serves both (9) and (10), so that it is the
    # cheapest and, under minibatches, unbiased
    "moreau": ("lagged", 3, (), f"{_MEHA}, with d_y at the old x and theta in (10)"),
    "moreau-lagged": ("lagged", 3, (), "the same as moreau"),
    "moreau-auto": ("lagged", 3, ("automatic",), "moreau with automatic constants"),
    "moreau-jacobi": ("jacobi", 4, (), f"{_MEHA}, with d_y at the old x"),
    "moreau-gauss-seidel": ("gauss-seidel", 6, (), _MEHA),
    "moreau-paper": ("gauss-seidel", 6, ("published",), f"{_MEHA}, with the constants printed there"),
}
"""Name -> order, evaluations of a step with one step of theta, needs, source."""


def _register_envelope(name: str, order: str, evaluations: int, needs: tuple[str, ...], source: str) -> None:
    def count(sizes: StepSizes) -> int:
        return evaluations + sizes.inner_steps - 1 + 3 * (sizes.lower_steps - 1)

    capturable = not needs  # automatic constants are read back, published ones are computed from k

    @register_method(name, evaluations=count, source=source, needs=("envelope", *needs), capturable=capturable)
    def build(sizes: StepSizes) -> Method:
        constants = sizes._asdict()
        return moreau(order=order, theta_steps=constants.pop("inner_steps"), **constants)


for _name, _row in _ENVELOPE.items():
    _register_envelope(_name, *_row)


@register_method("darts1", evaluations=2, source="Liu et al., ICLR 2019, first order", capturable=True)
def _darts1(sizes: StepSizes) -> Method:
    return darts1(_given(sizes.alpha), _given(sizes.beta), sizes.update_x, sizes.update_y)


@register_method("darts2", evaluations=5, source="Liu et al., ICLR 2019, equations 7 and 8", capturable=True)
def _darts2(sizes: StepSizes) -> Method:
    return darts2(_given(sizes.alpha), _given(sizes.beta), update_x=sizes.update_x, update_y=sizes.update_y)


@register_method(
    "rhg",
    evaluations=lambda sizes: 2 * sizes.inner_steps + 1,
    source="Franceschi et al., ICML 2017",
    needs=("hessian", "inner loop"),
    capturable=True,
)
def _rhg(sizes: StepSizes) -> Method:
    return rhg(_given(sizes.alpha), _given(sizes.eta), sizes.inner_steps, update_x=sizes.update_x)


@register_method(
    "rhg-truncated",
    evaluations=lambda sizes: sizes.inner_steps + max(1, sizes.inner_steps // TRUNCATION) + 1,
    source="Shaban et al., AISTATS 2019",
    needs=("hessian", "inner loop"),
    capturable=True,
)
def _rhg_truncated(sizes: StepSizes) -> Method:
    last = max(1, sizes.inner_steps // TRUNCATION)
    return rhg(_given(sizes.alpha), _given(sizes.eta), sizes.inner_steps, last, sizes.update_x)


@register_method(
    "implicit-cg",
    evaluations=lambda sizes: 2 * sizes.inner_steps + 3,
    source="Pedregosa, ICML 2016; Rajeswaran et al., NeurIPS 2019",
    needs=("hessian", "inner loop"),
)
def _implicit_cg(sizes: StepSizes) -> Method:
    n = sizes.inner_steps
    return implicit_cg(_given(sizes.alpha), _given(sizes.eta), n, n, sizes.update_x)


@register_method(
    "neumann",
    evaluations=lambda sizes: 2 * sizes.inner_steps + 2,
    source="Lorraine, Vicol and Duvenaud, AISTATS 2020",
    needs=("hessian", "inner loop"),
)
def _neumann(sizes: StepSizes) -> Method:
    n = sizes.inner_steps
    return neumann(_given(sizes.alpha), _given(sizes.eta), n, n, update_x=sizes.update_x)


@register_method(
    "bome",
    evaluations=lambda sizes: sizes.inner_steps + 3,
    source="Ye et al., NeurIPS 2022, Algorithm 1",
    needs=("barrier", "inner loop"),
    capturable=True,
)
def _bome(sizes: StepSizes) -> Method:
    steps = _given(sizes.alpha), _given(sizes.beta), _given(sizes.eta)
    return bome(*steps, sizes.inner_steps, update_x=sizes.update_x, update_y=sizes.update_y)


@register_method(
    "f2sa", evaluations=6, source="Kwon et al., ICML 2023, Algorithm 1", needs=("penalty",), capturable=True
)
def _f2sa(sizes: StepSizes) -> Method:
    """The penalty grows as c_k; alpha and beta, right for c_0, fall as 1/c_k, which the paper requires of beta."""

    def penalty(k: int) -> float:
        return penalty_at(_given(sizes.c), sizes.p, k)

    def falling(size: Any) -> Any:
        return lambda k: (size(k) if callable(size) else size) * penalty(0) / penalty(k)

    alpha, beta = falling(_given(sizes.alpha)), falling(_given(sizes.beta))
    return f2sa(alpha, beta, _given(sizes.eta), penalty, sizes.update_x, sizes.update_y)


@register_method("v-pbgd", evaluations=4, source="Shen and Chen, ICML 2023, Algorithm 1", needs=("penalty",))
def _v_pbgd(sizes: StepSizes) -> Method:
    steps = _given(sizes.alpha), _given(sizes.beta), _given(sizes.eta)
    return v_pbgd(*steps, at(_given(sizes.c), 0), update_x=sizes.update_x, update_y=sizes.update_y)


@register_method(
    "two-sided",
    evaluations=4,
    source="F2SA-p with p = 2, arXiv 2509.02937, with the pull of the Moreau envelope",
    needs=("penalty",),
    capturable=True,
)
def _two_sided(sizes: StepSizes) -> Method:
    gamma = None if isinstance(sizes.gamma, str) else at(sizes.gamma, 0)
    steps = _given(sizes.alpha), _given(sizes.beta), _given(sizes.eta)
    return two_sided(*steps, at(_given(sizes.c), 0), gamma, sizes.update_x, sizes.update_y)


@register_method(
    "fixed-penalty",
    evaluations=3,
    source="Mehra and Hamm, ACML 2021, equation 3",
    needs=("gradient penalty", "hessian"),
    capturable=True,
)
def _fixed_penalty(sizes: StepSizes) -> Method:
    alpha, beta, c = _given(sizes.alpha), _given(sizes.beta), at(_given(sizes.c), 0)
    return fixed_penalty(alpha, beta, c, sizes.update_x, sizes.update_y)


@register_method(
    "joint",
    evaluations=2,
    source="reference: moreau without the envelope; x follows F, y F/c + f",
    needs=("joint",),
    capturable=True,
)
def _joint(sizes: StepSizes) -> Method:
    steps = _given(sizes.alpha), _given(sizes.beta), _given(sizes.c)
    return joint(*steps, sizes.p, update_x=sizes.update_x, update_y=sizes.update_y)


@register_method(
    "lower-only", evaluations=1, source="reference: y is trained on f, x stays where it is", capturable=True
)
def _lower_only(sizes: StepSizes) -> Method:
    return y_alone(_given(sizes.beta), sizes.update_y)


@register_method(
    "upper-only", evaluations=1, source="reference: y is trained on F, x stays where it is", capturable=True
)
def _upper_only(sizes: StepSizes) -> Method:
    return y_alone(_given(sizes.beta), sizes.update_y, on="F")


def _given(size: Any) -> Any:
    """Returns a step size that is a number or a function; raises ValueError for "auto"."""
    if isinstance(size, str):
        raise ValueError("This method needs its step sizes as numbers or functions of k; only moreau finds them.")
    return size
