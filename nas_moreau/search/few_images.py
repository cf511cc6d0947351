"""Few images for the weights: where a search passes them so often that DARTS' own methods are prone to collapse.

With few images the weights memorise them, f and F part, and first- and second-order DARTS drift to skip connections
(Zela et al., "Understanding and Robustifying Differentiable Architecture Search", ICLR 2020, on full data; the same
with 3,000 images in our searches, docs/results_comparison.md).
"""

from __future__ import annotations

from typing import NamedTuple

from nas_moreau.config import SearchConfig

FEW, PASSES = 2500, 10
"""A search has few images if its weight split has at most `FEW`, each passed at least `PASSES` times (our choice)."""
PRONE = ("darts1", "darts2")


class FewImages(NamedTuple):
    """A search with few images.

    Attributes:
        images: Of the weight split.
        passes: How often they are passed in the whole search.
        method: The search method.
    """

    images: int
    passes: float
    method: str

    @property
    def prone(self) -> bool:
        """Whether the method is one that tends to collapse with few images."""
        return self.method.split("+")[0] in PRONE

    def __str__(self) -> str:
        """Returns a sentence for the terminal and the page."""
        advice = (
            f"with so few, {' and '.join(PRONE)} tend to cells of skip connections: search.method=moreau did better in "
            "our searches"
            if self.prone
            else f"with so few, {' and '.join(PRONE)} tend to cells of skip connections"
        )
        return f"{self.images:,} images train the weights, each {self.passes:.0f} times; {advice}."


def few_images(images: int, search: SearchConfig) -> FewImages | None:
    """Returns what is few about a search's images, None where they are enough.

    Args:
        images: Number of images in the weight split.
        search: The settings.
    """
    steps = search.steps_per_epoch or max(1, images // search.batch_size)
    passes = search.epochs * steps * search.batch_size / max(1, images)
    return FewImages(images, passes, search.method) if images <= FEW and passes >= PASSES else None
