"""Specifications, the statistics of pixels, and the containers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from nas_moreau.data import Data, Images, load_data
from nas_moreau.data.images import channel_statistics, refuse_too_large
from nas_moreau.errors import InputError


def test_resized_data_has_the_statistics_of_what_is_trained_on(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (20, 12, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", x_train=x, y_train=np.arange(20) % 2, x_test=x[:4], y_test=np.arange(4) % 2)
    data = load_data(f"npz:{tmp_path / 'a.npz'}", image_size=6)
    assert data.image_size == (6, 6)
    assert data.std == channel_statistics(data.train.pixels)[1]
    assert any(note.startswith("Images are 16x12: the shorter side resized to 6 pixels") for note in data.notes)
    grown = load_data(f"npz:{tmp_path / 'a.npz'}", image_size=24)
    assert grown.test.pixels.shape == (4, 3, 24, 24)


def test_fewer_training_images_are_the_same_share_of_each_class():
    whole, few = load_data("shapes"), load_data("shapes", train_images=500)
    counts = torch.bincount(few.train.labels)
    share = torch.bincount(whole.train.labels) * 500 / len(whole.train)
    assert len(few.train) == 500 and (counts - share).abs().max() <= 1
    assert few.digest == load_data("shapes", train_images=500).digest != whole.digest
    assert torch.equal(few.test.pixels, whole.test.pixels)
    kept = {bytes(image.numpy()) for image in few.train.pixels}
    assert len(kept) == 500 and kept <= {bytes(image.numpy()) for image in whole.train.pixels}
    assert any("500 of 4,000" in note for note in few.notes)
    assert load_data("shapes", train_images=4000).digest == whole.digest


@pytest.mark.parametrize("count", [9, 4001])
def test_a_number_of_training_images_that_cannot_be_is_refused(count):
    with pytest.raises(InputError, match="train_images"):
        load_data("shapes", train_images=count)


def test_files_follow_the_images_that_are_used(tmp_path):
    draw = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / "train" / name).mkdir(parents=True)
        (tmp_path / "test" / name).mkdir(parents=True)
        for i in range(6):
            for part in ("train", "test"):
                image = Image.fromarray(draw.integers(0, 256, (8, 8, 3), dtype=np.uint8))
                image.save(tmp_path / part / name / f"{i}.png")
    data = load_data(f"folder:{tmp_path}", train_images=5)
    assert len(data.files) == len(data.train) == 5
    for path, pixels in zip(data.files, data.train.pixels):
        assert np.array_equal(np.asarray(Image.open(path)).transpose(2, 0, 1), pixels.numpy())


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_statistics_against_numpy(chunk):
    pixels = torch.randint(0, 256, (50, 3, 7, 5), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    mean, std = channel_statistics(pixels, chunk)
    scaled = pixels.numpy().astype(np.float64) / 255
    assert mean == pytest.approx(scaled.mean((0, 2, 3)), rel=1e-13)
    assert std == pytest.approx(scaled.std((0, 2, 3)), rel=1e-13)
    assert (mean, std) == channel_statistics(pixels)


def test_constant_channel_can_be_normalised():
    mean, std = channel_statistics(torch.full((3, 1, 2, 2), 51, dtype=torch.uint8))
    assert mean == pytest.approx((0.2,))
    assert std == (1.0,)


def test_containers():
    images = Images(torch.arange(24, dtype=torch.uint8).view(6, 1, 2, 2), torch.arange(6))
    taken = images.take(torch.tensor([4, 0]))
    assert taken.labels.tolist() == [4, 0]
    assert taken.pixels[:, 0, 0, 0].tolist() == [16, 0]
    assert len(images) == 6
    data = Data("mine", ("a",) * 6, images, taken, (0.5,), (0.5,)).to("cpu")
    assert (data.channels, data.image_size, data.num_classes, len(data.test)) == (1, (2, 2), 6, 2)
    moved = Images(images.pixels, images.labels).to("meta")
    assert moved.pixels.device.type == moved.labels.device.type == "meta"


@pytest.mark.parametrize(
    ("pixels", "labels"),
    [
        (torch.zeros(2, 1, 2, 2), torch.zeros(2, dtype=torch.int64)),
        (torch.zeros(2, 2, 2, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64)),
        (torch.zeros(2, 1, 2, 2, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64)),
        (torch.zeros(2, 1, 2, 2, dtype=torch.uint8), torch.zeros(2, dtype=torch.int32)),
    ],
)
def test_images_check_what_they_hold(pixels, labels):
    with pytest.raises(ValueError, match="give"):
        Images(pixels, labels)


def test_the_limit_is_checked_before_memory():
    with pytest.raises(InputError, match=r"2861\.0 GiB .*1000000000 images of 32x32"):
        refuse_too_large(10**9, 3, 32, 32, "This")
    refuse_too_large(50_000, 3, 32, 32, "CIFAR")
