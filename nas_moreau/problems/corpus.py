"""Which sources of a text corpus help? One weight for each source, learned so that a byte model fits held-out text.

    f(x, y) = mean over sources s of  sigmoid(x_s) * mean loss of y on source s  +  ridge/2 |y|^2
    F(x, y) = mean loss of y on held-out text of the kind that is wanted

y is a small model of the next byte (an embedding and one hidden layer over the last `CONTEXT` bytes). The texts come
with every Python: the wanted kind is the language reference within `pydoc`; sources are docstrings, comments and code
of the standard library, and four useless ones: docstrings with the letters of each word shuffled, in another alphabet
order (rot13), read backwards, and random characters.
"""

from __future__ import annotations

import ast
import codecs
import math
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as f

from nas_moreau.bilevel import Bilevel
from nas_moreau.bilevel.tensors import Tensors
from nas_moreau.data import generator_for
from nas_moreau.errors import InputError

CONTEXT, WIDTH, HIDDEN = 8, 16, 96
"""Bytes that the model sees, size of a byte's embedding, size of the hidden layer."""
SYMBOLS = 97
"""Printable ASCII, newline, and one symbol for everything else."""
LENGTH = 100_000
"""Bytes of each source, and of the texts for validation and test."""
BATCH = 64
"""Positions of each source in a step, and four times as many of the validation text."""
RIDGE = 1e-4
USELESS = ("shuffled letters", "rot13", "backwards", "random")


class Batch(NamedTuple):
    """Contexts (..., n, CONTEXT) and the symbols (..., n) that follow them, int64."""

    contexts: Tensor
    targets: Tensor


@dataclass(frozen=True)
class Corpus:
    """A corpus of several sources, as symbols.

    Attributes:
        names: Of the sources.
        sources: (sources, LENGTH), uint8.
        validation, test: (LENGTH,), uint8, of the kind that is wanted; no text is in two of the three.
    """

    names: tuple[str, ...]
    sources: Tensor
    validation: Tensor
    test: Tensor

    def lower_batch(self, k: int, seed: int) -> Batch:
        """Returns `BATCH` positions of every source for step k."""
        starts = torch.randint(
            0, LENGTH - CONTEXT, (len(self.names), BATCH), generator=generator_for(seed, "corpus", k), device="cpu"
        )
        return _cut(self.sources, starts)

    def upper_batch(self, k: int, seed: int) -> Batch:
        """Returns 4 `BATCH` positions of the validation text for step k."""
        generator = generator_for(seed, "corpus validation", k)
        return _cut(
            self.validation, torch.randint(0, LENGTH - CONTEXT, (4 * BATCH,), generator=generator, device="cpu")
        )


def read_corpus(seed: int) -> Corpus:
    """Returns the corpus; the seed divides the reference text and draws the useless sources.

    Raises:
        InputError: This Python was installed without its standard library's sources.
    """
    from pydoc_data.topics import topics

    generator = generator_for(seed, "corpus texts")
    names = sorted(topics)
    order = torch.randperm(len(names), generator=generator, device="cpu").tolist()
    pieces = [topics[names[i]] for i in order]
    half = len(pieces) // 2
    validation, test = (_encoded("\n".join(part)) for part in (pieces[:half], pieces[half:]))
    docstrings, comments, code = _standard_library()
    useless = {
        "shuffled letters": _shuffled_letters(docstrings, generator),
        "rot13": codecs.encode(docstrings, "rot13"),
        "backwards": docstrings[:LENGTH][::-1],
    }
    found = {"docstrings": _encoded(docstrings), "comments": _encoded(comments), "code": _encoded(code)}
    found |= {name: _encoded(text) for name, text in useless.items()}
    found["random"] = torch.randint(0, SYMBOLS, (LENGTH,), generator=generator, device="cpu").to(torch.uint8)
    return Corpus(tuple(found), torch.stack(list(found.values())), validation, test)


def corpus_problem(ridge: float = RIDGE) -> Bilevel:
    """Returns F and f as above; x is one tensor of logits, batches are `Batch`es.

    Args:
        ridge: Factor of the ridge in f.
    """

    def upper(x: Tensors, y: Tensors, batch: Batch) -> Tensor:
        return f.cross_entropy(next_byte(y, batch.contexts), batch.targets)

    def lower(x: Tensors, y: Tensors, batch: Batch) -> Tensor:
        logits = next_byte(y, batch.contexts)
        losses = f.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), reduction="none")
        weights = torch.sigmoid(x[0]) / len(x[0])
        size = sum((t.square().sum() for t in y), start=x[0].new_zeros(()))
        return weights @ losses.view(batch.targets.shape).mean(1) + 0.5 * ridge * size

    return Bilevel(upper, lower)


def byte_model(seed: int) -> Tensors:
    """Returns y at the start: the embedding, and two layers [E, W1, b1, W2, b2]."""
    generator = generator_for(seed, "byte model")

    def normal(*shape: int, scale: float) -> Tensor:
        return torch.randn(*shape, generator=generator, device="cpu") * scale

    inputs = CONTEXT * WIDTH
    return [
        normal(SYMBOLS, WIDTH, scale=1.0),
        normal(inputs, HIDDEN, scale=1 / math.sqrt(inputs)),
        torch.zeros(HIDDEN, device="cpu"),
        normal(HIDDEN, SYMBOLS, scale=1 / math.sqrt(HIDDEN)),
        torch.zeros(SYMBOLS, device="cpu"),
    ]


def next_byte(y: Sequence[Tensor], contexts: Tensor) -> Tensor:
    """Returns logits (..., n, SYMBOLS) of the symbols that follow contexts (..., n, CONTEXT)."""
    hidden = torch.tanh(y[0][contexts].flatten(-2) @ y[1] + y[2])
    return hidden @ y[3] + y[4]


@torch.no_grad()
def perplexity(y: Sequence[Tensor], text: Tensor, positions: int = 20_000) -> float:
    """Returns the perplexity of a byte on evenly spaced positions of a text.

    Args:
        y: The model.
        text: Symbols, (n,).
        positions: Their number.
    """
    starts = torch.linspace(0, len(text) - CONTEXT - 1, positions, device="cpu").long()
    batch = _cut(text, starts)
    return math.exp(float(f.cross_entropy(next_byte(y, batch.contexts), batch.targets)))


def _cut(text: Tensor, starts: Tensor) -> Batch:
    """Returns contexts that begin at `starts` of a text, or of the texts in the rows of a matrix."""
    index = starts[..., None] + torch.arange(CONTEXT + 1, device="cpu")
    if text.ndim == 2:
        index = index + text.shape[1] * torch.arange(len(text), device="cpu")[:, None, None]
    found = text.flatten()[index].long()
    return Batch(found[..., :-1], found[..., -1])


def _encoded(text: str) -> Tensor:
    """Returns the first `LENGTH` characters as symbols; a text that is too short begins again."""
    codes = torch.frombuffer(bytearray(text.encode("ascii", "replace")), dtype=torch.uint8)
    symbols = torch.where((codes >= 32) & (codes < 127), codes - 32, 96)
    symbols = torch.where(codes == 10, 95, symbols)
    return symbols.repeat(-(-LENGTH // len(symbols)))[:LENGTH].to(torch.uint8)


def _shuffled_letters(text: str, generator: torch.Generator) -> str:
    """Returns the text with the letters of each word in random order."""
    words = text[:LENGTH].split(" ")
    keys = torch.rand(sum(map(len, words)), generator=generator, device="cpu").tolist()
    done, begin = [], 0
    for word in words:
        own = keys[begin : begin + len(word)]
        begin += len(word)
        done.append("".join(letter for _, letter in sorted(zip(own, word), key=lambda pair: pair[0])))
    return " ".join(done)


def _standard_library() -> tuple[str, str, str]:
    """Returns docstrings, comments and code of the standard library's modules, each at least `LENGTH` long."""
    docstrings: list[str] = []
    comments: list[str] = []
    code: list[str] = []
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("[a-z]*.py")):  # public modules
        source = path.read_text(encoding="utf-8", errors="replace")
        tree = ast.parse(source)
        documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
        found = [ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, documented)]
        docstrings += [text for text in found if text]
        lines = [line.strip() for line in source.splitlines()]
        comments += [line.lstrip("# ") for line in lines if line.startswith("# ")]
        if sum(map(len, code)) < LENGTH:
            code.append(ast.unparse(_without_docstrings(tree)))
        if min(sum(map(len, part)) for part in (docstrings, comments, code)) >= LENGTH:
            break
    else:
        raise InputError(
            "The sources of the standard library are not installed beside this Python.", "Use a Python that has them."
        )
    return "\n".join(docstrings), "\n".join(comments), "\n".join(code)


def _without_docstrings(tree: ast.Module) -> ast.Module:
    """Returns the tree with string statements removed."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            kept = [s for s in body if not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))]
            node.body = kept or [ast.Pass()]  # type: ignore[attr-defined]
    return tree
