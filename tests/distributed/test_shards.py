"""What needs no group: rows of a batch, draws for the whole of it, synchronised norms, the environment of children."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as f

from nas_moreau import distributed
from nas_moreau.architecture import Genotype, Network
from nas_moreau.architecture.networks.batch_norm import SynchronisedBatchNorm2d, batch_norm, synchronise
from nas_moreau.architecture.networks.batch_shard import on_shard
from nas_moreau.architecture.networks.network import drop_path
from nas_moreau.architecture.networks.operations import Noise
from nas_moreau.bilevel import Sharded
from nas_moreau.bilevel.tensors import value_and_grads
from nas_moreau.cli import entry as cli
from nas_moreau.distributed import Shard
from nas_moreau.errors import InputError
from nas_moreau.training.device import has_unused_parameters


def test_a_batch_is_shared_out_evenly_or_not_at_all():
    assert distributed.own_shards(12, 3) == [(0, 4, 12), (4, 8, 12), (8, 12, 12)]
    with pytest.raises(InputError, match=r"A batch of 10 images .* 1 process in 4 parts each.*multiple of 4"):
        distributed.own_shards(10, 4)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("draws", [Noise(2), lambda x: drop_path(x, 0.5)])
def test_draws_are_those_of_the_whole_batch(draws, layout):
    x = torch.ones(12, 3, 6, 6).contiguous(memory_format=layout)
    torch.manual_seed(1)
    whole = draws(x)
    for begin, end in ((0, 6), (6, 9), (0, 12)):
        torch.manual_seed(1)
        with on_shard(Shard(begin, end, 12)):
            assert torch.equal(draws(x[begin:end]), whole[begin:end])
    torch.manual_seed(1)
    assert torch.equal(draws(x), whole)  # the share is over with the context


@pytest.mark.parametrize("affine", [False, True])
def test_a_synchronised_norm_of_one_process_is_the_norm(affine):
    torch.manual_seed(0)
    x = torch.randn(4, 3, 5, 5, dtype=torch.float64, requires_grad=True)
    scale, bias = (torch.randn(3, dtype=torch.float64, requires_grad=True) if affine else None for _ in range(2))
    wanted = [t for t in (x, scale, bias) if t is not None]
    seen = []
    for gather in (None, lambda tensor: tensor.unsqueeze(0)):
        mean, variance = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
        with on_shard(Shard(0, 4, 4), gather):
            out = batch_norm(x, mean, variance, scale, bias, True)
            seen.append([out, mean, variance, *torch.autograd.grad((out**3).sum(), wanted)])
    for a, b in zip(*seen, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_synchronised_modules_keep_their_names_and_fixed_statistics():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    synchronise(network)
    assert type(network[1]) is SynchronisedBatchNorm2d and list(network.state_dict()) == list(before)
    x, gathered = torch.randn(2, 3, 4, 4), []

    def gather(tensor):
        gathered.append(tensor)
        return torch.stack([tensor, tensor])

    with on_shard(Shard(0, 2, 4), gather):
        out = network(x)
        assert len(gathered) == 1
        torch.testing.assert_close(out, f.batch_norm(network[0](x), None, None, training=True))
        network.eval()
        network(x)
        assert len(gathered) == 1
    assert network[1].num_batches_tracked == 1


def test_an_evaluation_of_a_shared_objective_is_the_whole():
    def loss(x, y, batch):
        return (x[0] * y[0] * batch).sum(), torch.tensor(3)

    def reduce(value, gradients, aux):
        return value / 2, [gradient / 2 for gradient in gradients], aux * 2

    x, y = [torch.tensor([1.0, 2.0])], [torch.tensor([3.0, 4.0])]
    plain, shared = (value_and_grads(objective, x, y, 1.0) for objective in (loss, Sharded(loss, reduce)))
    assert shared.value == plain.value / 2 and shared.aux == 6
    assert torch.equal(shared.grad_x[0], plain.grad_x[0] / 2) and torch.equal(shared.grad_y[0], plain.grad_y[0] / 2)


def test_without_torchrun_nothing_is_exchanged():
    tensors = [torch.ones(2), torch.zeros(3)]
    assert distributed.all_reduce_mean(tensors) == tensors and distributed.all_reduce_mean([]) == []
    assert distributed.all_reduce_max(15) == 15 and distributed.all_gather_object("a") == ["a"]
    assert distributed.run_on_rank0(lambda: 3) == distributed.run_on_all_ranks(lambda: 3) == 3
    assert list(distributed.work_queue(3, "any")) == [0, 1, 2]
    with distributed.session():
        assert distributed.world_size() == 1 and distributed.rank() == 0


def test_children_do_not_take_themselves_for_members_of_the_group(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "TORCHELASTIC_RESTART_COUNT"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    found = distributed.child_environment()
    assert not {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "TORCHELASTIC_RESTART_COUNT"} & set(found)
    assert found["OMP_NUM_THREADS"] == "3"


def test_parameters_that_no_output_reaches_are_found_without_computing():
    dead = Genotype.parse("|nor_conv_3x3~0|+|none~0|none~1|+|skip_connect~0|none~1|none~2|")
    live = Genotype.parse("|nor_conv_3x3~0|+|none~0|skip_connect~1|+|skip_connect~0|none~1|nor_conv_1x1~2|")
    for genotype, expected in ((dead, True), (live, False)):
        network = Network(genotype, 4, 1, 10)
        assert has_unused_parameters(network, (3, 8, 8)) is expected
        assert all(p.grad is None and not p.is_meta for p in network.parameters())


@pytest.mark.parametrize("rank", ["0", "1"])
def test_verbs_for_one_process_are_refused_in_several(rank, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", rank)
    assert cli.main(["list", "spaces"]) == cli.USAGE
    out, err = capsys.readouterr()
    assert out == "" and bool(err) == (rank == "0")
    assert rank != "0" or ("list" in err and "torchrun" in err)
