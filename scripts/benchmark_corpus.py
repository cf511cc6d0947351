"""Which sources of a text corpus help: weights of seven sources, and what a byte model trained with them is worth.

    python scripts/benchmark_corpus.py                               # five seeds, a minute or two of one core
    python scripts/benchmark_corpus.py --methods moreau,f2sa,implicit-cg --tune 100

Every method gets the same number of gradient evaluations. Then a fresh model is trained with the weights found, with
equal weights and with all weights 1, and its perplexity on test text is printed. `--tune` chooses the step size of x
for every method by the same search on another seed, by the perplexity on validation text.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time

import torch
from torch import Tensor

from nas_moreau.bilevel import StepSizes, adam, sgd, solve
from nas_moreau.bilevel.methods import METHODS
from nas_moreau.problems.corpus import USELESS, Corpus, byte_model, corpus_problem, perplexity, read_corpus

EVALUATIONS = 3000
RETRAINING = 1000
STEPS_OF_X = (0.02, 0.05, 0.1)
STEP, INNER_STEPS, RETRAINING_STEP = 0.5, 5, 0.6


def found_weights(corpus: Corpus, method: str, alpha: float, seed: int) -> Tensor:
    """Returns the weights that a method finds with its budget."""
    info = METHODS[method]
    rule, c = sgd(0.5), 3.0
    needs_penalty = "penalty" in info.needs
    sizes = StepSizes(
        alpha=alpha,
        beta=STEP / c if needs_penalty else STEP,
        eta=STEP,
        gamma=1.0,
        c=c,
        p=0.0,
        inner_steps=INNER_STEPS if "inner loop" in info.needs else 1,
        update_x=adam(),
        update_y=rule,
        update_theta=rule,
    )
    steps = EVALUATIONS // info.count(sizes)
    x, y = [torch.zeros(len(corpus.names))], byte_model(seed)
    batches = lambda k: (corpus.upper_batch(k, seed), corpus.lower_batch(k, seed))  # noqa: E731
    found = solve(corpus_problem(), x, y, info.build(sizes), steps=steps, batches=batches)
    if found.status == "diverged":
        print(f"{method} diverged: {found.message}", file=sys.stderr)
    return torch.sigmoid(found.x[0])


def trained(corpus: Corpus, weights: Tensor, seed: int) -> list[Tensor]:
    """Returns a byte model trained on the sources with fixed weights, its step size falling to a twentieth."""
    sizes = StepSizes(beta=lambda k: RETRAINING_STEP * max(0.05, 1 - k / RETRAINING), update_y=sgd(0.9))
    method = METHODS["lower-only"].build(sizes)
    batches = lambda k: (None, corpus.lower_batch(k, seed))  # noqa: E731
    return solve(
        corpus_problem(), [torch.logit(weights, 1e-6)], byte_model(seed), method, steps=RETRAINING, batches=batches
    ).y


def useless_last(names: tuple[str, ...], weights: Tensor) -> bool:
    """Whether every useless source has a smaller weight than every other."""
    useless = torch.tensor([name in USELESS for name in names])
    return float(weights[useless].max()) < float(weights[~useless].min())


def main() -> None:
    """Prints weights and perplexities."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--methods", default="moreau", help="comma-separated; default: %(default)s")
    parser.add_argument("--tune", type=int, metavar="SEED", help=f"choose x's step size among {STEPS_OF_X}")
    given = parser.parse_args()
    torch.set_num_threads(1)
    methods, seeds = given.methods.split(","), [int(seed) for seed in given.seeds.split(",")]
    alphas = dict.fromkeys(methods, STEPS_OF_X[0])
    if given.tune is not None:
        corpus = read_corpus(given.tune)
        for method in methods:
            reached = {}
            for alpha in STEPS_OF_X:
                weights = found_weights(corpus, method, alpha, given.tune)
                reached[alpha] = perplexity(trained(corpus, weights, given.tune), corpus.validation)
            alphas[method] = min(reached, key=lambda alpha: reached[alpha])
            print(f"{method}: validation perplexity by step of x {reached}", file=sys.stderr, flush=True)
    found: dict[str, list[float]] = {}
    for seed in seeds:
        corpus = read_corpus(seed)
        size = len(corpus.names)
        fixed = {"equal weights of 1/2": torch.full((size,), 0.5), "weights of 1": torch.ones(size)}
        for method in methods:
            begin = time.process_time()
            weights = found_weights(corpus, method, alphas[method], seed)
            seconds = time.process_time() - begin
            shown = ", ".join(f"{name} {float(w):.3f}" for name, w in zip(corpus.names, weights))
            last = "useless last" if useless_last(corpus.names, weights) else "useless NOT last"
            print(f"seed {seed} {method} (x {alphas[method]}, {seconds:.1f} CPU s): {shown}; {last}", flush=True)
            found.setdefault(method, []).append(perplexity(trained(corpus, weights, seed), corpus.test))
        for name, weights in fixed.items():
            found.setdefault(name, []).append(perplexity(trained(corpus, weights, seed), corpus.test))
    for name, values in found.items():
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        print(f"{name}: test perplexity {statistics.fmean(values):.2f} +- {spread:.2f} {[round(v, 2) for v in values]}")


if __name__ == "__main__":
    main()
