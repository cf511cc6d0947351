"""Every random draw comes from a generator whose seed is a hash of what the draw is for."""

from __future__ import annotations

import hashlib

import torch


def seed_for(seed: int, purpose: str, *numbers: int) -> int:
    """Returns a 63-bit seed that depends on all arguments and on nothing else.

    Two purposes, epochs or steps never share a stream, and a resumed run needs no stored generator state.

    Args:
        seed: The user's seed, any integer.
        purpose: What is drawn, for example "augment".
        numbers: Any further integers, for example epoch and step.
    """
    key = repr((int(seed), str(purpose), *(int(number) for number in numbers)))
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") >> 1


def generator_for(seed: int, purpose: str, *numbers: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Returns a fresh generator on `device`, seeded by `seed_for(seed, purpose, *numbers)`."""
    return torch.Generator(device=device).manual_seed(seed_for(seed, purpose, *numbers))
