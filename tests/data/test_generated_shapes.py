"""The embedded data set is seeded, balanced, and painted as its class names say."""

from __future__ import annotations

import math

import pytest
import torch

from nas_moreau.data import generated_shapes as shapes
from nas_moreau.data import load_data


@pytest.fixture(scope="module")
def data():
    return load_data("shapes")


def test_sizes_classes_and_balance(data):
    assert (len(data.train), len(data.test), data.image_size, data.channels) == (4000, 1000, (32, 32), 3)
    assert data.num_classes == len(set(data.classes)) == 10
    assert torch.bincount(data.train.labels).tolist() == [400] * 10
    assert torch.bincount(data.test.labels).tolist() == [100] * 10
    assert data.notes == ()


def test_no_file_is_read_or_written(tmp_path, monkeypatch):
    def refuse(*arguments, **_):
        raise AssertionError(f"opened {arguments}")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("builtins.open", refuse)
    monkeypatch.setattr("io.open", refuse)
    assert len(load_data("shapes", directory=tmp_path / "absent", image_size=8).train) == 4000
    assert not list(tmp_path.iterdir())


def test_same_seed_same_bytes_other_seed_other_bytes():
    first, again, other = (shapes.generate_shapes(20, seed, "train") for seed in (3, 3, 4))
    assert torch.equal(first.pixels, again.pixels)
    assert torch.equal(first.labels, again.labels)
    assert not torch.equal(first.pixels, other.pixels)
    assert not torch.equal(first.pixels, shapes.generate_shapes(20, 3, "test").pixels)


def test_training_and_test_images_are_all_different(data):
    rows = torch.cat([data.train.pixels, data.test.pixels]).flatten(1)
    assert len(torch.unique(rows, dim=0)) == len(rows)


def test_attributes_split_the_classes_as_documented():
    assert len(shapes._COMBINATIONS) == 10
    lonely = 0
    for combination in shapes._COMBINATIONS:
        distances = [sum(a != b for a, b in zip(combination, other)) for other in shapes._COMBINATIONS]
        differing = {
            next(i for i in range(3) if combination[i] != other[i])
            for other, distance in zip(shapes._COMBINATIONS, distances)
            if distance == 1
        }
        lonely += differing != {0, 1, 2}
    assert lonely == 2  # the two triangles


@pytest.mark.parametrize("size", [8, 28, 48])
def test_other_image_sizes(size):
    images = shapes.generate_shapes(12, 0, "train", size)
    assert images.pixels.shape == (12, 3, size, size)
    assert images.pixels.flatten(1).float().std(1).min() > 5  # there is something in each image


@pytest.mark.parametrize("shape", [0, 1, 2])
def test_shapes_have_the_area_of_the_disc_and_turn(shape):
    axis = (torch.arange(600) + 0.5) / 20 - 15
    u, v = axis[None, None, :].expand(1, 600, 600), axis[None, :, None].expand(1, 600, 600)
    inside = shapes.signed_distance(u, v, torch.full((1, 1, 1), shape), torch.full((1, 1, 1), 5.0)) < 0
    assert inside.float().sum().item() / 400 == pytest.approx(math.pi * 25, rel=0.01)


def test_hue_saturation_value_of_known_colours():
    def rgb(hue, saturation, value):
        arguments = [torch.full((1, 1, 1), number) for number in (hue, saturation, value)]
        return shapes.hsv_to_rgb(*arguments).flatten().tolist()

    assert rgb(0.0, 1.0, 1.0) == pytest.approx([1, 0, 0])
    assert rgb(1 / 3, 1.0, 0.5) == pytest.approx([0, 0.5, 0], abs=1e-6)
    assert rgb(2 / 3, 0.5, 1.0) == pytest.approx([0.5, 0.5, 1], abs=1e-6)
    assert rgb(-1 / 6, 1.0, 1.0) == pytest.approx([1, 0, 1], abs=1e-6)


def test_objects_are_redder_or_bluer_as_named(data):
    # Backgrounds take any hue, so only the averages over a class can tell: red minus blue at the centre.
    centre = data.train.pixels[:, :, 12:20, 12:20].float().mean((2, 3))
    redness = centre[:, 0] - centre[:, 2]
    for label, name in enumerate(data.classes):
        mean = redness[data.train.labels == label].mean().item()
        assert (mean > 20) if name.startswith("warm") else (mean < -20)


def test_class_means_alone_do_not_tell(data):
    """The nearest class mean, the simplest linear classifier, stays far below 60 %."""
    train = data.train.pixels.flatten(1).float()
    means = torch.stack([train[data.train.labels == label].mean(0) for label in range(10)])
    nearest = torch.cdist(data.test.pixels.flatten(1).float(), means).argmin(1)
    assert 0.1 < (nearest == data.test.labels).float().mean().item() < 0.4
