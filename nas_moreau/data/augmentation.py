"""Crop, flip, normalise and cutout for a whole batch at once, on the device the pixels are on."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


class Augment:
    """Random crop with zero padding, horizontal flip, normalising and cutout, in this (the published) order.

    `augment(pixels, generator)` augments; `augment(pixels)` only normalises, as evaluation does. The
    padding is black before normalising. Cutout sets a square of the normalised image to 0 around a centre
    drawn anywhere in the image, so that the square is clipped at the borders (DeVries & Taylor 2017, as used
    by DARTS).

    Args:
        mean: Mean of each channel, pixels scaled to 0..1.
        std: Standard deviation of each channel, pixels scaled to 0..1.
        crop: Padding in pixels on each side before the random crop back to the image's size; 0 for none.
        flip: Whether half of the images are mirrored.
        cutout: Side of the square in pixels; 0 for none. An odd side covers one pixel less, as published.
    """

    def __init__(
        self,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        crop: int = 4,
        flip: bool = True,
        cutout: int = 0,
    ):
        if len(mean) != len(std) or not mean or min(std) <= 0:
            raise ValueError(f"mean {mean} and std {std} do not match; give one positive std for each mean")
        if crop < 0 or cutout < 0:
            raise ValueError(f"crop {crop} and cutout {cutout} are lengths in pixels; give at least 0")
        self.mean, self.std, self.crop, self.flip, self.cutout = tuple(mean), tuple(std), crop, flip, cutout
        self._constants: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def __call__(self, pixels: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Returns the float32 batch for uint8 `pixels` (n, channels, height, width); see the class."""
        if generator is None:
            return self.normalise(pixels)
        height, width = pixels.shape[2:]
        return self.apply(pixels, self.draw(len(pixels), height, width, generator))

    def draw(self, count: int, height: int, width: int, generator: torch.Generator) -> Tensor:
        """Returns the draws for `count` images: int64 (5, count), one column an image.

        Rows: top and left of the crop in the padded image, flip (0 or 1), row and column of the cutout's
            centre. All five are drawn whatever is switched on, so cutout or flip never changes the draws of
            the rest. Several processes that draw for the global batch each apply their own columns.
        """
        limits = (2 * self.crop + 1, 2 * self.crop + 1, 2, height, width)
        return torch.stack(
            [torch.randint(limit, (count,), generator=generator, device=generator.device) for limit in limits]
        )

    def apply(self, pixels: Tensor, draws: Tensor) -> Tensor:
        """Returns the float32 batch that `draw`'s numbers make of uint8 `pixels`."""
        count, _, height, width = pixels.shape
        top, left, mirrored, row, column = draws.to(pixels.device, non_blocking=True)
        if self.crop or self.flip:
            # A window mirrored is the mirrored window of the mirrored image: one gather does both.
            source = functional.pad(pixels, [self.crop] * 4)
            place = torch.arange(count, device=pixels.device)
            if self.flip:
                source = torch.cat([source, source.flip(3)])
                place = place + count * mirrored
                left = torch.where(mirrored.bool(), 2 * self.crop - left, left)
            # (n, channels, top, left, row, column)
            windows = source.unfold(2, height, 1).unfold(3, width, 1)  # a view
            pixels = windows[place, :, top, left]
        batch = self.normalise(pixels)
        if self.cutout:
            half = self.cutout // 2
            in_rows = self._within(height, row, half)[:, :, None]
            in_columns = self._within(width, column, half)[:, None, :]
            batch.mul_((in_rows & in_columns).logical_not_()[:, None].to(batch.dtype))
        return batch

    def normalise(self, pixels: Tensor) -> Tensor:
        """Returns `(pixels / 255 - mean) / std` as float32."""
        if pixels.shape[1] != len(self.mean):
            raise ValueError(
                f"{pixels.shape[1]} channels do not match {len(self.mean)} means; give one mean for each channel"
            )
        mean, std = self._on(pixels.device)
        return pixels.to(torch.float32).div_(255).sub_(mean).div_(std)

    def as_pixels(self, batch: Tensor) -> Tensor:
        """Returns the uint8 pixels of a normalised batch, to look at: the inverse of `normalise`."""
        mean, std = self._on(batch.device)
        return batch.to(torch.float32).mul(std).add_(mean).mul_(255).round_().clamp_(0, 255).to(torch.uint8)

    @staticmethod
    def _within(size: int, centre: Tensor, half: int) -> Tensor:
        """Returns bool (n, size): positions p with centre - half <= p < centre + half."""
        distance = torch.arange(size, device=centre.device) - centre[:, None]
        return (distance >= -half) & (distance < half)

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        if device not in self._constants:
            mean, std = torch.tensor([self.mean, self.std], dtype=torch.float32, device=device)[:, :, None, None]
            self._constants[device] = (mean, std)
        return self._constants[device]
