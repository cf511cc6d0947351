"""Derived networks: published counts, heads, drop-path, sizes."""

import pytest
import torch

from nas_moreau.architecture import Genotype, Network, load_genotype, load_space, multiply_adds, parameter_count
from nas_moreau.architecture.networks.network import drop_path
from nas_moreau.architecture.spaces.zoo import published_cell
from nas_moreau.errors import InputError

PUBLISHED = {
    "DARTS_V1": (3_169_414, 500_987_520),
    "DARTS_V2": (3_349_342, 528_359_040),
    "PC_DARTS_cifar": (3_634_678, 556_670_592),
    "PDARTS": (3_433_798, 532_174_464),
    "GDAS_V1": (3_368_782, 519_428_736),
    "DrNAS_cifar10": (4_099_294, 635_135_616),
    "NASNet": (3_830_950, 603_452_448),
    "AmoebaNet": (3_145_078, 488_931_552),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_counts_of_published_cells(name):
    genotype = published_cell(name)
    parameters, macs = PUBLISHED[name]
    with torch.device("meta"):
        network = Network(genotype)
        with_head = Network(genotype, auxiliary=True)
    assert parameter_count(network) == parameters
    assert multiply_adds(network) == macs
    assert parameter_count(with_head) - parameters == (457_994 if name in ("NASNet", "AmoebaNet") else 476_426)
    assert multiply_adds(with_head) == macs


@pytest.mark.parametrize(
    "channels, layers, count", [(4, 3, 2_858), (16, 8, 246_106), (36, 8, 1_154_926), (16, 20, 710_682)]
)
def test_counts_of_small_networks(channels, layers, count):
    with torch.device("meta"):
        assert parameter_count(Network(published_cell("DARTS_V2"), channels, layers)) == count


@pytest.mark.parametrize(
    "operation, parameters, macs",
    [
        ("nor_conv_3x3", 1_531_546, 220_119_680),
        ("skip_connect", 73_306, 7_783_040),
    ],
)
def test_counts_of_nas_bench_201_networks(operation, parameters, macs):
    text = f"|{operation}~0|+|{operation}~0|{operation}~1|+|{operation}~0|{operation}~1|{operation}~2|"
    with torch.device("meta"):
        network = Network(Genotype.parse(text), 16, 5)
    assert (parameter_count(network), multiply_adds(network)) == (parameters, macs)


def test_counting_leaves_modes_and_hooks_as_they_were():
    network = Network(published_cell("DARTS_V2"), 4, 3)
    network.cells[0].eval()
    before = [module.training for module in network.modules()]
    multiply_adds(network)
    assert [module.training for module in network.modules()] == before
    assert not any(module._forward_hooks for module in network.modules())


@pytest.mark.parametrize("size", [(8, 8), (9, 13), (32, 32), (40, 24)])
def test_any_image_size_classes_and_channels_with_auxiliary_head(size):
    network = Network(published_cell("DARTS_V2"), 4, 5, num_classes=7, auxiliary=True, in_channels=1)
    logits, auxiliary = network(torch.randn(2, 1, *size))
    assert logits.shape == auxiliary.shape == (2, 7)
    assert network.eval()(torch.randn(2, 1, *size)).shape == (2, 7)


def test_too_small_images_and_wrong_channels_are_refused():
    network = Network(published_cell("DARTS_V2"), 4, 5)
    with pytest.raises(InputError, match="too small"):
        network(torch.randn(2, 3, 6, 32))
    with pytest.raises(InputError, match=r"\(n, 3, height, width\)"):
        network(torch.randn(2, 1, 32, 32))


@pytest.mark.parametrize(
    "shape, channels, cure",
    [
        ((2, 32, 32, 3), 3, "images.permute(0, 3, 1, 2)"),
        ((32, 32, 3), 3, "image.permute(2, 0, 1)[None]"),
        ((3, 32, 32), 3, "image[None]"),
        ((2, 32, 32), 1, "images[:, None]"),
        ((32, 32), 1, "image[None, None]"),
        ((2, 1, 32, 32), 3, "in_channels"),
    ],
)
def test_the_line_that_gives_images_the_right_shape(shape, channels, cure):
    network = Network(published_cell("DARTS_V2"), 4, 2, in_channels=channels).eval()
    images = torch.randn(shape)
    with pytest.raises(InputError) as caught:
        network(images)
    assert cure in caught.value.cure
    if "in_channels" not in cure:
        assert network(eval(cure, {"images": images, "image": images})).shape[1] == 10


def test_integers_are_refused_with_the_line_that_scales_them():
    with pytest.raises(InputError, match="uint8") as caught:
        Network(published_cell("DARTS_V2"), 4, 2)(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
    assert "255" in caught.value.cure


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("text", ["NASNet", "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|none~0|none~1|avg_pool_3x3~2|"])
def test_scripting(text, tmp_path):
    network = Network(load_genotype(text), 4, 2, auxiliary=text == "NASNet", drop_path=0.3)
    with pytest.raises(InputError, match="drop path"):
        torch.jit.script(network)
    images = torch.randn(2, 3, 17, 16)
    torch.jit.script(network.eval()).save(tmp_path / "scripted.pt")
    scripted = torch.jit.load(tmp_path / "scripted.pt")
    torch.testing.assert_close(scripted(images), network(images))
    assert set(scripted.state_dict()) <= set(network.state_dict())


def test_a_cell_without_any_operation_gives_a_constant():
    network = Network(Genotype.parse("|none~0|+|none~0|none~1|+|none~0|none~1|none~2|"), 4, 1, num_classes=3).eval()
    out = network(torch.randn(4, 3, 8, 8))
    torch.testing.assert_close(out, out[:1].expand(4, 3))


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    torch.manual_seed(0)
    x = torch.ones(4000, 2, 3, 3)
    y = drop_path(x, 0.25)
    per_sample = y.flatten(1)
    assert torch.equal(per_sample.amin(1), per_sample.amax(1))
    assert set(per_sample[:, 0].tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    assert abs(y.mean().item() - 1) < 0.05
    assert torch.equal(x, torch.ones_like(x))


def test_drop_path_is_off_by_default_and_in_evaluation():
    torch.manual_seed(0)
    network = Network(published_cell("DARTS_V2"), 4, 3)
    images = torch.randn(2, 3, 8, 8)
    assert network.drop_path == 0
    assert torch.equal(network(images), network(images))
    network.drop_path = 0.5
    assert not torch.equal(network(images), network(images))
    network.eval()
    assert torch.equal(network(images), network(images))


def test_random_networks_of_every_space_run():
    import random

    for name in ("toy", "darts", "nas_bench_201", "robust_darts_s4"):
        space = load_space(name)
        network = Network(space.random_genotype(random.Random(1)), 4, 2 if space.skeleton.name == "darts" else 1)
        assert network(torch.randn(2, 3, 16, 16)).isfinite().all()
