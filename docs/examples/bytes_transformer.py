"""A byte-level transformer on texts that come with Python: attention heads, kinds of feed-forward layers, depth.

python docs/examples/bytes_transformer.py
nas-moreau search --import docs/examples/bytes_transformer.py --module make_model --steps 400
"""

import importlib.util
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as f
from torch.utils.data import Dataset

from nas_moreau import Choice, search_module
from nas_moreau.modules import Depth, Width

CONTEXT, WIDTH = 32, 32


class Texts(Dataset):
    """Pieces of CONTEXT + 1 bytes of modules of Python's library; the next byte is to be predicted."""

    def __init__(self, names: tuple[str, ...] = ("argparse", "typing", "inspect"), count: int = 4000):
        texts = [Path(importlib.util.find_spec(name).origin).read_bytes() for name in names]
        self.bytes = torch.frombuffer(bytearray(b"".join(texts)), dtype=torch.uint8).clamp(max=127)
        self.count = min(count, len(self.bytes) // (CONTEXT + 1))

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> torch.Tensor:
        begin = number * (CONTEXT + 1)
        return self.bytes[begin : begin + CONTEXT + 1].long()


class Attention(nn.Module):
    """Causal self-attention with some number of heads."""

    def __init__(self, heads: int):
        super().__init__()
        self.heads, self.into, self.out = heads, nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns (n, length, WIDTH)."""
        n, length, _ = x.shape
        parts = self.into(x).reshape(n, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        found = f.scaled_dot_product_attention(*parts, is_causal=True)
        return self.out(found.transpose(1, 2).reshape(n, length, WIDTH))


class Gated(nn.Module):
    """A feed-forward layer whose hidden values are multiplied by a gate."""

    def __init__(self, hidden: int):
        super().__init__()
        self.value, self.gate, self.out = nn.Linear(WIDTH, hidden), nn.Linear(WIDTH, hidden), nn.Linear(hidden, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns (n, length, WIDTH)."""
        return self.out(self.value(x) * f.silu(self.gate(x)))


class Residual(nn.Module):
    """x + part(norm(x))."""

    def __init__(self, part: nn.Module):
        super().__init__()
        self.norm, self.part = nn.LayerNorm(WIDTH), part

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns (n, length, WIDTH)."""
        return x + self.part(self.norm(x))


def layer() -> nn.Module:
    """Returns a layer: its number of heads and its feed-forward layer are to be found."""
    heads = Choice({f"{n} heads": Attention(n) for n in (1, 4, 16)})
    plain = Choice(Width([nn.Linear(WIDTH, 128), nn.GELU(), nn.Linear(128, WIDTH)], [32, 64, 128]))
    return nn.Sequential(Residual(heads), Residual(Choice({"plain": plain, "gated": Gated(64)})))


class Transformer(nn.Module):
    """Bytes to logits of the next byte; one or two layers are fixed, the others are a choice of depth."""

    def __init__(self):
        super().__init__()
        self.embed, self.place = nn.Embedding(128, WIDTH), nn.Parameter(0.02 * torch.randn(CONTEXT, WIDTH))
        self.layers = Choice(Depth([layer() for _ in range(2)]), name="depth")
        self.out = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 128))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns logits (n, length, 128)."""
        return self.out(self.layers(self.embed(x) + self.place[: x.shape[1]]))


def make_model() -> nn.Module:
    """Returns the module to search in."""
    return Transformer()


def loss(net: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    """Returns the cross-entropy of the next byte, nats."""
    return f.cross_entropy(net(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())


def train(count: int = 4000) -> Dataset:
    """Returns the training data."""
    return Texts(count=count)


def main(steps: int = 400, count: int = 4000, seed: int = 0, **more: object):
    """Searches with AdamW for the weights, and returns what was found."""
    torch.manual_seed(seed)
    search = {"weights": {"rule": "adamw", "lr": 0.003, "lr_min": 0.0001, "clip": 1.0}}
    keywords = {"search": search, "batch_size": 32, "derive": {"rule": "trained"}, **more}
    return search_module(make_model(), loss, train(count), steps=steps, seed=seed, **keywords)


if __name__ == "__main__":
    found = main()
    print(found)
    print(found.compare_random(8))
