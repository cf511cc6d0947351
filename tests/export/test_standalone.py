"""The one file that an export writes computes what the network computes, from the same tensors."""

import pytest
import torch
from safetensors.torch import save_file

from nas_moreau.architecture import Genotype, Network, load_genotype
from nas_moreau.export import standalone
from nas_moreau.export.formats import structure_of

NAS_BENCH_201 = "|nor_conv_3x3~0|+|skip_connect~0|none~1|+|avg_pool_3x3~0|nor_conv_1x1~1|skip_connect~2|"
GENOTYPES = {name: load_genotype(name) for name in ("DARTS_V2", "NASNet")} | {
    "NAS-Bench-201": Genotype.parse(NAS_BENCH_201)
}


@pytest.mark.parametrize("name", GENOTYPES)
def test_it_computes_the_same(name, tmp_path):
    genotype = GENOTYPES[name]
    layers = 1 if "cell" in genotype.cells else 4
    net = Network(genotype, 4, layers, 3).eval()
    save_file(net.state_dict(), tmp_path / "model.safetensors")
    plain = standalone.Network(genotype.to_dict()["cells"], structure_of(net), 3, 3)
    plain.load_state_dict(standalone.read_safetensors(tmp_path / "model.safetensors"))
    pixels = torch.randint(0, 256, (2, 3, 16, 17), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = standalone.normalise(pixels)
    assert images.dtype == torch.float32 and images.abs().max() <= 2  # mean 0.5, deviation 0.25
    assert torch.allclose(plain.eval()(images), net(images), atol=1e-5)


def test_its_own_example_loads(tmp_path):
    """The values that stand in the file until an export replaces them describe a network, too."""
    made = standalone.Network(standalone.CELLS, standalone.STRUCTURE, standalone.IN_CHANNELS, 2)
    save_file(made.state_dict() | {"empty": torch.zeros(0)}, tmp_path / "weights.safetensors", {"note": "skipped"})
    assert standalone.read_safetensors(tmp_path / "weights.safetensors").pop("empty").shape == (0,)
    save_file(made.state_dict(), tmp_path / "weights.safetensors")
    loaded = standalone.load(tmp_path / "weights.safetensors")
    assert not loaded.training
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in made.state_dict().items())


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_it_can_be_scripted():
    network = standalone.Network(standalone.CELLS, standalone.STRUCTURE, standalone.IN_CHANNELS, 2).eval()
    images = torch.rand(2, 3, 17, 15)
    assert torch.equal(torch.jit.script(network)(images), network(images))
