"""The vectorised augmentation equals a plain loop over images, bit for bit."""

from __future__ import annotations

import pytest
import torch
from torchvision.transforms import functional

from nas_moreau.data import Augment, generator_for

SHAPES = [(5, 3, 32, 32), (7, 1, 28, 28), (4, 3, 9, 14), (6, 2, 5, 3), (1, 3, 1, 1)]


def pixels_of(shape, seed=0):
    return torch.randint(0, 256, shape, generator=generator_for(seed, "pixels"), dtype=torch.uint8)


def one_by_one(augment, pixels, draws):
    """The published recipe, one image after the other, by torchvision's functions."""
    height, width = pixels.shape[2:]
    batch = []
    for image, (top, left, mirrored, row, column) in zip(pixels, draws.T.tolist()):
        if augment.crop:
            padded = functional.pad(image, [augment.crop] * 4, fill=0)
            image = functional.crop(padded, top, left, height, width)
        if augment.flip and mirrored:
            image = functional.hflip(image)
        image = functional.normalize(image.float().div(255), list(augment.mean), list(augment.std))
        if augment.cutout:
            half = augment.cutout // 2
            for y in range(max(0, row - half), min(height, row + half)):
                for x in range(max(0, column - half), min(width, column + half)):
                    image[:, y, x] = 0
        batch.append(image)
    return torch.stack(batch)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    "options", [(4, True, 16), (4, True, 0), (0, True, 3), (2, False, 1), (0, False, 0), (40, True, 70)]
)
def test_equals_the_loop(shape, options):
    crop, flip, cutout = options
    channels = shape[1]
    augment = Augment((0.4914, 0.4822, 0.4465)[:channels], (0.247, 0.2435, 0.2616)[:channels], crop, flip, cutout)
    pixels = pixels_of(shape)
    draws = augment.draw(len(pixels), *shape[2:], generator_for(1, "draws"))
    found = augment(pixels, generator_for(1, "draws"))
    assert found.dtype == torch.float32
    assert found.shape == shape
    assert torch.equal(found, one_by_one(augment, pixels, draws))


def test_input_is_left_alone():
    pixels = pixels_of((4, 3, 8, 8))
    before = pixels.clone()
    Augment((0.5,) * 3, (0.5,) * 3, cutout=4)(pixels, generator_for(0, "x"))
    Augment((0.5,) * 3, (0.5,) * 3)(pixels)
    assert torch.equal(pixels, before)


def test_draws_cover_their_ranges_and_nothing_else():
    draws = Augment((0.5,), (0.5,), crop=4).draw(20_000, 6, 9, generator_for(0, "draws"))
    assert draws.shape == (5, 20_000)
    for row, limit in zip(draws, (9, 9, 2, 6, 9)):
        counts = torch.bincount(row, minlength=limit)
        assert len(counts) == limit
        # 20,000 / limit expected in each; six standard deviations leave no room for a wrong range.
        expected = 20_000 / limit
        assert (counts - expected).abs().max() < 6 * expected**0.5


def test_options_do_not_change_the_draws_of_others():
    wanted = Augment((0.5,), (0.5,)).draw(10, 8, 8, generator_for(0, "draws"))
    other = Augment((0.5,), (0.5,), flip=False, cutout=4).draw(10, 8, 8, generator_for(0, "draws"))
    assert torch.equal(wanted, other)


def test_a_rank_applies_its_columns_of_the_global_draws():
    augment = Augment((0.5,) * 3, (0.25,) * 3, cutout=8)
    pixels = pixels_of((8, 3, 16, 16))
    whole = augment(pixels, generator_for(0, "x"))
    draws = augment.draw(8, 16, 16, generator_for(0, "x"))
    parts = [augment.apply(pixels[rank::2], draws[:, rank::2]) for rank in range(2)]
    assert torch.equal(parts[0], whole[0::2])
    assert torch.equal(parts[1], whole[1::2])


def test_evaluation_only_normalises():
    pixels = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 1, 1, 3)
    found = Augment((0.2,), (0.4,), cutout=16)(pixels)
    assert found.flatten().tolist() == pytest.approx([-0.5, 0.0, 2.0])


def test_padding_is_black_before_normalising():
    augment = Augment((0.5,), (0.25,), crop=1, flip=False)
    corner = torch.tensor([[0], [0], [0], [0], [0]])
    found = augment.apply(torch.full((1, 1, 2, 2), 255, dtype=torch.uint8), corner)
    assert found.flatten().tolist() == [-2.0, -2.0, -2.0, 2.0]


def test_wrong_channels_and_options_are_refused():
    with pytest.raises(ValueError, match=r"1 channels .*3 means"):
        Augment((0.5,) * 3, (0.5,) * 3)(pixels_of((2, 1, 4, 4)))
    for arguments in (((), ()), ((0.5,), (0.0,)), ((0.5,), (0.5, 0.5))):
        with pytest.raises(ValueError, match="positive std"):
            Augment(*arguments)
    with pytest.raises(ValueError, match="at least 0"):
        Augment((0.5,), (0.5,), crop=-1)
