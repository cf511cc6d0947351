"""Selecting the weights of a group lasso by the validation loss: (21) of Liu et al., ICML 2024, with generated data.

    min over x >= x_min of |A_val y - b_val|^2 / (2 n_val)
    subject to y in argmin |A_train y - b_train|^2 / (2 n_train) + sum_j x_j |y_(j)|

x_min is 1e-3 of the level at which y = 0. With x = 0 and more features than samples the lower level has many solutions,
one of which fits the validation half exactly: an optimum of the bilevel problem that is worth nothing on new data.

For comparison there are searches over x that use no gradients (grid, random, TPE); they solve the lower level for each
x they try.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from nas_moreau.bilevel import Bilevel, lower_solution
from nas_moreau.bilevel.prox import GroupLasso, project_box
from nas_moreau.bilevel.tensors import Tensors
from nas_moreau.problems.synthetic import Case, relative_error

LOWEST = 1e-3
"""x_min in units of `level_of_zero`."""

TOLERANCE = 1e-5
"""To which the searches solve the lower level."""


class Half(NamedTuple):
    """A design (samples, features) and its answers (samples,)."""

    A: Tensor
    b: Tensor

    def loss(self, y: Tensor) -> Tensor:
        """Returns |A y - b|^2 / (2 samples)."""
        return (self.A @ y - self.b).square().sum() / (2 * self.b.numel())


class GroupLassoData(NamedTuple):
    """Training, validation and test halves, the group of each feature, and how many groups there are."""

    train: Half
    validation: Half
    test: Half
    group_of: Tensor
    groups: int

    def test_error(self, y: Tensors) -> float:
        """Returns the mean square error on the test half."""
        return 2 * float(self.test.loss(y[0]))


def generate(
    features: int = 600,
    groups: int = 30,
    samples: int = 100,
    snr: float = 2.0,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> GroupLassoData:
    """Returns data of the published kind: Gaussian designs, three groups of which five features each matter, noise.

    Args:
        features: Number of features, a multiple of `groups`.
        groups: Number of groups of consecutive features.
        samples: Number of samples in each of the three halves.
        snr: Standard deviation of the signal over that of the noise.
        seed: Seed of a generator on the CPU.
        dtype: Type of all floating-point tensors.
        device: Device of all tensors.

    Raises:
        ValueError: The groups do not divide the features.
    """
    if features % groups or groups < 3:
        raise ValueError(
            f"{groups} groups do not fit {features} features. Use 3 or more groups that divide the features."
        )
    generator = torch.Generator(device="cpu").manual_seed(seed)
    size = features // groups
    truth = torch.zeros(features, dtype=torch.float64, device="cpu")
    for group in range(3):
        count = min(5, size)
        truth[group * size : group * size + count] = torch.arange(1, count + 1, dtype=torch.float64, device="cpu")

    def half() -> Half:
        A = torch.randn(samples, features, generator=generator, dtype=torch.float64, device="cpu")
        signal = A @ truth
        noise = torch.randn(samples, generator=generator, dtype=torch.float64, device="cpu")
        b = signal + noise * (signal.norm() / noise.norm() / snr)
        return Half(A.to(device=device, dtype=dtype), b.to(device=device, dtype=dtype))

    group_of = torch.arange(groups, device=device).repeat_interleave(size)
    return GroupLassoData(half(), half(), half(), group_of, groups)


def group_lasso(data: GroupLassoData | None = None, n: int = 600, seed: int = 0) -> Case:
    """Returns (21) on `data`; without data, on generated ones with groups of 20 features (of 2 below 60).

    No exact solution is known. The start is x_j = a quarter of `level_of_zero`, at which all of y is zero, and y = 0.

    Args:
        data: From `generate`, or other data of this form.
        n: Number of features of generated data; what does not fill a group is left out.
        seed: Seed of generated data.
    """
    if data is None:
        size = 20 if n >= 60 else 2
        data = generate(n - n % size, (n - n % size) // size, seed=seed)
    train, validation, _, group_of, groups = data
    start_x, start_y = [torch.full_like(train.A[0, :groups], level_of_zero(data) / 4)], [torch.zeros_like(train.A[0])]
    return Case(
        "group-lasso",
        Bilevel(
            lambda x, y, batch: validation.loss(y[0]),
            lambda x, y, batch: train.loss(y[0]),
            g=GroupLasso(group_of, groups),
            project_x=project_box(low=LOWEST * level_of_zero(data)),
        ),
        start_x,
        start_y,
        paper={"alpha": 0.01, "beta": 0.05, "eta": 0.05, "gamma": 100.0, "c": 20.0, "p": 0.48},
        data=data,
    )


def level_of_zero(data: GroupLassoData) -> float:
    """Returns the least common x for which the lower level's solution is y = 0: max_j |A_(j)' b| / samples."""
    slope = data.train.A.T @ data.train.b / data.train.b.numel()
    return float(GroupLasso(data.group_of, data.groups).norms([slope]).max())


def orthogonal_case(groups: int = 4, seed: int = 0, dtype: torch.dtype = torch.float64) -> Case:
    """Returns a group lasso with a closed form: orthogonal designs, so each group is solved alone.

    With groups of 2, f = |y - u|^2 / 2 and F = |y - w|^2 / 2, group j of y(x) is u_j (1 - x_j/|u_j|)+ and the best
    x_j is |u_j| - <u_j, w_j>/|u_j|, clipped to [0, |u_j|].

    Args:
        groups: Number of groups.
        seed: Seed of u and w.
        dtype: Type of all tensors.
    """
    generator = torch.Generator(device="cpu").manual_seed(seed)
    u = torch.randn(groups, 2, generator=generator, dtype=torch.float64, device="cpu").to(dtype) + 1.5
    shrink = torch.linspace(0.3, 0.9, groups, dtype=dtype, device="cpu")
    w = shrink[:, None] * u + 0.1 * torch.randn(groups, 2, generator=generator, dtype=torch.float64, device="cpu").to(
        dtype
    )
    length = u.norm(dim=1)
    best = torch.minimum((length - (u * w).sum(1) / length).clamp(min=0), length)
    g = GroupLasso(torch.arange(groups, device="cpu").repeat_interleave(2), groups)
    return Case(
        "group-lasso",
        Bilevel(
            lambda x, y, batch: 0.5 * (y[0] - w.reshape(-1)).square().sum(),
            lambda x, y, batch: 0.5 * (y[0] - u.reshape(-1)).square().sum(),
            g=g,
            project_x=project_box(low=0.0),
        ),
        [torch.zeros(groups, dtype=dtype, device="cpu")],
        [torch.zeros(2 * groups, dtype=dtype, device="cpu")],
        lambda x: relative_error(x, [best]),
        [best],
        y_of=lambda x: g.prox(x, [u.reshape(-1)], 1.0),
    )


class Trial(NamedTuple):
    """The best of a search: x, y(x), the validation loss, how many x were tried, and the seconds it took."""

    x: Tensors
    y: Tensors
    objective: float
    tried: int
    seconds: float


def _search(case: Case, propose: Callable[[int, float | None], Tensor | None]) -> Trial:
    """Tries what `propose` returns for the trial's number and the last one's loss; each is solved from the last y."""
    best, y, last, tried, start = None, case.y, None, 0, time.perf_counter()
    while (candidate := propose(tried, last)) is not None:
        x = [candidate]
        y = lower_solution(case.problem, x, y, tolerance=TOLERANCE).point
        last, tried = float(case.problem.F(x, y, None)), tried + 1
        if best is None or last < best[2] or math.isnan(best[2]):
            best = (x, y, last)
    assert best is not None
    return Trial(*best, tried, time.perf_counter() - start)


def grid_search(case: Case, tries: int = 50) -> Trial:
    """Returns the best of one weight for all groups, `tries` of them log-spaced from the level where y = 0 to x_min."""
    top = level_of_zero(case.data)
    levels = [top * LOWEST ** (i / max(1, tries - 1)) for i in range(tries)]
    return _search(case, lambda i, last: torch.full_like(case.x[0], levels[i]) if i < tries else None)


def random_search(case: Case, tries: int = 50, seed: int = 0) -> Trial:
    """Returns the best of `tries` weights, each group's log-uniform over the range of `grid_search`."""
    top, generator = level_of_zero(case.data), torch.Generator(device="cpu").manual_seed(seed)

    def propose(i: int, last: float | None) -> Tensor | None:
        drawn = torch.rand(case.x[0].shape, generator=generator, dtype=torch.float64, device="cpu")
        return (top * LOWEST**drawn).to(case.x[0]) if i < tries else None

    return _search(case, propose)


def tpe_search(case: Case, tries: int = 50, seed: int = 0) -> Trial:
    """Returns the best of `tries` weights proposed by optuna's tree-structured Parzen estimator, over the same range.

    Raises:
        ImportError: optuna is not installed (extra `benchmark`).
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
    top, open_trials = level_of_zero(case.data), list[optuna.Trial]()

    def propose(i: int, last: float | None) -> Tensor | None:
        if last is not None and open_trials:
            study.tell(open_trials.pop(), last)
        if i >= tries:
            return None
        trial = study.ask()
        open_trials.append(trial)
        powers = [trial.suggest_float(f"x{j}", math.log(LOWEST), 0.0) for j in range(case.x[0].numel())]
        return top * case.x[0].new_tensor(powers).exp()

    return _search(case, propose)
