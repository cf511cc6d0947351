"""The two-sided envelope: y minimises f + F/c, theta f - F/c, and x follows half the difference; bias O(1/c^2).

    theta+ = theta - eta ( f_y(x,theta) - F_y(x,theta)/c + (theta - y)/gamma )
    y+     = y - beta ( F_y(x,y) + c ( f_y(x,y) - (y - theta+)/gamma ) )
    d_x    = ( F_x(x,y) + F_x(x,theta) ) / 2 + (c/2) ( f_x(x,y) - f_x(x,theta) )

With m(s) = min over y of f + s F, the hypergradient is the derivative of m at s = 0; the one-sided penalty takes a
forward difference with s = 1/c, this a central one: F2SA-p with p = 2 (arXiv 2509.02937), with the proximal pull of the
Moreau envelope between y and theta. c must be well above 1: theta moves along f - F/c.
"""

from __future__ import annotations

from nas_moreau.bilevel.method import Batches, Info, Method, State, StepSize, at, make_method
from nas_moreau.bilevel.problem import Bilevel
from nas_moreau.bilevel.tensors import Tensors, add, norm, scale, subtract, value_and_grads
from nas_moreau.bilevel.updates import Update, gradient_descent


def two_sided(
    alpha: StepSize,
    beta: StepSize,
    eta: StepSize,
    penalty: StepSize = 10.0,
    gamma: float | None = None,
    update_x: Update | None = None,
    update_y: Update | None = None,
) -> Method:
    """Returns the two-sided method; four evaluations in a step, all at the old x, y and theta.

    Args:
        alpha: Step size of x.
        beta: Step size of y; it must fall as 1/c.
        eta: Step size of theta.
        penalty: c, as a number or a function of k.
        gamma: Parameter of the envelope; None for no pull between y and theta.
        update_x: Update rule of x; default params - step * direction.
        update_y: Update rule of y; the same default.

    Raises:
        ValueError: In `init`, where the lower level has a g.
    """
    rule_x, rule_y = update_x or gradient_descent(), update_y or gradient_descent()

    def init(problem: Bilevel, x: Tensors, y: Tensors, batches: Batches) -> State:
        if problem.g is not None:
            raise ValueError("The two-sided method has no proximal step for a nonsmooth lower level. Use moreau(...).")
        return State(0, rule_x.init(x), rule_y.init(y), [t.clone() for t in y])

    def step(
        problem: Bilevel, x: Tensors, y: Tensors, state: State, batches: Batches
    ) -> tuple[Tensors, Tensors, State, Info]:
        a, b, e, c = (at(size, state.k) for size in (alpha, beta, eta, penalty))
        theta = list(state.theta)
        pull = 0.0 if gamma is None else 1 / gamma
        F, F_theta = (value_and_grads(problem.F, x, point, batches.upper) for point in (y, theta))
        f = value_and_grads(problem.f, x, y, batches.lower)
        f_theta = value_and_grads(problem.at_theta, x, theta, batches.lower)
        apart = subtract(y, theta)
        d_theta = add(add(f_theta.grad_y, F_theta.grad_y, -1 / c), apart, -pull)
        new_theta = problem.prox_y(x, add(theta, d_theta, -e), e)
        d_y = add(add(F.grad_y, f.grad_y, c), subtract(y, new_theta), -c * pull)
        new_y, y_rule = rule_y.apply(d_y, b, y, state.y_rule)
        difference = subtract(f.grad_x, f_theta.grad_x)
        d_x = add(scale(add(F.grad_x, F_theta.grad_x), 0.5), difference, 0.5 * c)
        new_x, x_rule = rule_x.apply(d_x, a, x, state.x_rule)
        norms = {"d_x": norm(d_x), "d_y": norm(d_y), "distance": norm(apart), "difference": norm(difference)}
        info = Info(a, b, norms, F=F.value, f=f.value, f_theta=f_theta.value, eta=e, gamma=gamma)
        new = State(state.k + 1, x_rule, y_rule, new_theta)
        return problem.onto_x(new_x), problem.prox_y(x, new_y, b), new, info._replace(F_aux=F.aux, f_aux=f.aux)

    return make_method(init, step)
