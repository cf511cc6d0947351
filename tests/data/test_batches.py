"""Parts and batches: one resizing policy, disjoint splits, reproducible draws, shards of a whole batch."""

import numpy as np
import pytest
import torch

from nas_moreau.config import load_config
from nas_moreau.data import Augment, Batches, Part, load_images
from nas_moreau.data.batches import search_parts
from nas_moreau.distributed import Shard
from nas_moreau.errors import InputError

CPU = torch.device("cpu")


def test_data_and_search_resize_images_that_are_not_square_by_the_same_policy(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (30, 12, 20, 3), dtype=np.uint8)
    labels = np.arange(30) % 3
    np.savez(tmp_path / "wide.npz", x_train=pixels, y_train=labels, x_test=pixels, y_test=labels)

    def searched(*overrides):
        config = load_config(overrides=[f"data.name=npz:{tmp_path / 'wide.npz'}", *overrides])
        return search_parts(config, load_images(config), CPU).weights.images.pixels

    by_data, by_search = searched("data.image_size=6"), searched("search.image_size=6")
    assert by_data.shape == (30, 3, 6, 6) and torch.equal(by_data, by_search)


def test_the_parts_of_a_search_are_disjoint_and_its_batches_stay_within_them(tiny_config, tiny_data):
    parts = search_parts(tiny_config(), tiny_data, CPU)
    whole = torch.cat([part.indices for part in parts])
    assert sorted(whole.tolist()) == list(range(60)) and len(parts.held_out) == 6
    for part in (parts.weights, parts.architecture):
        batches = Batches(part, 4, 0, "a test")
        drawn = {index for step in range(30) for index in batches.indices(step).tolist()}
        assert drawn == set(part.indices.tolist())
        # every pass is another order, and a batch does not depend on those before it
        assert batches.indices(0).tolist() != batches.indices(len(batches)).tolist()
        assert torch.equal(Batches(part, 4, 0, "a test").batch(17)[0], batches.batch(17)[0])


def test_a_sample_depends_on_the_part_alone(tiny_data):
    part = Part.whole(tiny_data.train, Augment((0.5,) * 3, (0.25,) * 3))
    some = part.sample(20)
    assert len(part) == 60 and len(some) == 20 and torch.equal(some.indices, part.sample(30).indices[:20])
    assert some.indices.tolist() != list(range(20)) and len(part.sample(100)) == 60


def test_the_rows_of_a_batch_are_those_of_the_whole_batch(tiny_data):
    part = Part.whole(tiny_data.train, Augment((0.5,) * 3, (0.2,) * 3, 2, True, 4))
    batches = Batches(part, 12, 0, "weights")
    for step in (0, 5):
        pixels, labels = batches.batch(step)
        for begin, end in ((0, 6), (6, 12), (9, 12)):
            some, few = batches.on(Shard(begin, end, 12)).batch(step)
            assert torch.equal(some, pixels[begin:end]) and torch.equal(few, labels[begin:end])


def test_a_part_smaller_than_a_batch_is_refused(tiny_data):
    part = Part.whole(tiny_data.train, Augment((0.5,) * 3, (0.2,) * 3)).sample(11)
    with pytest.raises(InputError, match="batch_size"):
        Batches(part, 12, 0, "weights")
