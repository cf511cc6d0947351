"""Two users of one engine: cells written as Choices in a module are searched by the same numbers as by a supernet."""

import pytest
import torch
from torch import nn
from torch.nn import functional as f

from nas_moreau import Choice
from nas_moreau.architecture import LiteralSupernet, Supernet, load_space
from nas_moreau.architecture.networks.literal import LiteralCell, matching_state
from nas_moreau.config import load_config
from nas_moreau.modules.choice import find_choices
from nas_moreau.modules.problem import ModuleBatch, WithLoss, module_problem
from nas_moreau.search.methods import build_method
from nas_moreau.search.supernet_problem import Batch, supernet_problem


class CellOfChoices(nn.Module):
    """A cell of which every edge is a Choice; equal cells share the decisions."""

    def __init__(self, cell):
        super().__init__()
        self.name, self.space, self.preprocess = cell.name, cell.space, cell.preprocess
        self.edges = nn.ModuleList(
            Choice(dict(operations.items()), name=f"{cell.name} {edge}")
            for edge, operations in enumerate(cell.operations)
        )

    def forward(self, inputs, mixture, edges):
        space, states = self.space, list(inputs)
        for i, module in enumerate(self.preprocess):
            states[i] = module(inputs[i])
        for node in range(space.inputs, space.inputs + space.nodes):
            incoming = [choice(states[a]) for choice, (a, b) in zip(self.edges, space.edges) if b == node]
            states.append(sum(incoming))
        return torch.cat([states[i] for i in space.concat], 1)


def batch_of(cells, pair, progress):
    return Batch(*pair, progress) if cells else ModuleBatch(pair, progress)


@pytest.mark.parametrize("method", ["moreau+beta", "darts1", "darts2"])
def test_the_same_alphas_after_steps(method):
    torch.manual_seed(0)
    space = load_space("toy")
    supernet = Supernet(space, 2, 3, num_classes=3, kernels="portable").double()
    literal = LiteralSupernet(space, 2, 3, num_classes=3).double()
    literal.load_state_dict(matching_state(literal, supernet.state_dict()))
    literal.alphas.requires_grad_(False)
    for path, part in list(literal.named_modules()):
        if isinstance(part, LiteralCell):
            parent, _, name = path.rpartition(".")
            setattr(literal.get_submodule(parent), name, CellOfChoices(part))
    places = find_choices(literal)
    rows = {f"{cell} {edge}": supernet.alphas[cell][edge : edge + 1] for cell in space.cells for edge in range(5)}
    x = [rows[name].detach().clone() for name in places.by_name]
    whole = WithLoss(literal, lambda net, batch: f.cross_entropy(net(batch[0]), batch[1]))
    beta = 2.0 if "beta" in method else 0.0
    cells, choices = supernet_problem(supernet, beta), module_problem(whole, places, x, beta=beta)
    search = load_config(overrides=[f"search.method={method}", "search.alphas.lr=0.1"]).search
    stepping, _ = build_method(search, 2)
    points = [[posed.x, posed.y, stepping.init(posed.problem, posed.x, posed.y)] for posed in (cells, choices)]
    for step in range(3):
        images, labels = torch.randn(2, 4, 3, 8, 8, dtype=torch.float64), torch.randint(0, 3, (2, 4))
        upper, lower = zip(images, labels)
        found = []
        for point, posed in zip(points, (cells, choices)):
            batches = [batch_of(posed is cells, pair, step / 3) for pair in (upper, lower)]
            *point[:], info = stepping.step(posed.problem, *point, *batches)
            found.append((info.F, info.f))
        torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-9)
    alphas = dict(zip(places.by_name, points[1][0]))
    for cell, tensor in zip(space.cells, points[0][0]):
        for edge in range(len(space.edges)):
            torch.testing.assert_close(tensor[edge : edge + 1], alphas[f"{cell} {edge}"], rtol=1e-7, atol=1e-9)
    assert not torch.equal(points[0][0][0], cells.x[0])
