"""What comes out of a search in a module: files without this package, and the comparison with random choices."""

import json
import subprocess
import sys

import pytest
import torch
from torch import nn

from nas_moreau import InputError, search_module
from nas_moreau.modules.training import train_plain


@pytest.fixture
def found(make_net, loss, samples):
    def accuracy(net, batch):
        return (net(batch["x"])["logits"].argmax(-1) == batch["label"]).float().mean()

    return search_module(make_net(), loss, samples, steps=6, batch_size=8, metric=accuracy)


def test_the_state_dict_loads_without_this_package(found, tmp_path):
    network = found.network()
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    (tmp_path / "choices.json").write_text(found.choices_json())
    code = f"""
import json, sys, torch
from torch import nn
options = {{"relu": nn.ReLU, "tanh": nn.Tanh, "same": nn.Identity}}
options |= {{"linear": lambda: nn.Linear(6, 6), "skip": nn.Identity}}
chosen = json.load(open({str(tmp_path / "choices.json")!r}))["choices"]
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Linear(4, 6), nn.BatchNorm1d(6)
        self.acts = nn.ModuleList(options[chosen["act"]]() for _ in range(2))
        self.branch, self.last = options[chosen["branch"]](), nn.Linear(6, 2)
    def forward(self, x):
        return self.last(self.acts[1](self.branch(self.acts[0](self.norm(self.first(x))))))
net = Net().eval()
net.load_state_dict(torch.load({str(tmp_path / "weights.pt")!r}, weights_only=True))
assert "nas_moreau" not in sys.modules
print(json.dumps(net(torch.ones(1, 4)).tolist()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    expected = network(torch.ones(1, 4))["logits"].tolist()
    assert json.loads(done.stdout)[0] == pytest.approx(expected[0], abs=1e-6)


def test_torch_export_takes_any_batch(found, tmp_path):
    path = found.export("torch-export", tmp_path / "net.pt2")
    x = torch.randn(5, 4)
    again = torch.export.load(path).module()
    torch.testing.assert_close(again(x)["logits"], found.network()(x)["logits"])


@pytest.mark.slow
def test_onnx_gives_the_same_outputs(found, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(found.export("onnx", tmp_path / "net.onnx")))
    x = torch.randn(3, 4)
    (logits,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(logits), found.network()(x)["logits"].detach())


def test_an_unknown_format_is_refused(found, tmp_path):
    with pytest.raises(InputError, match="torch-export"):
        found.export("tflite", tmp_path / "net")


def test_the_comparison_trains_each_from_the_same_weights(found):
    rows = found.compare_random(3, steps=4, seeds=2, others={"skips": {"branch": "skip"}})
    assert [row.kind for row in rows.rows] == ["found"] * 2 + ["random"] * 3 + ["skips"] * 2
    assert rows.rows[-1].choices["branch"] == "skip" and rows.rows[-1].choices["act"] == found.choices["act"]
    data = rows.to_dict()
    assert [entry["n"] for entry in data["summary"]] == [2, 3, 2] and 0 < data["summary"][1]["p"] <= 1
    assert found.compare_random(3, steps=4, seeds=2, others={"skips": {"branch": "skip"}}).to_dict() == data
    assert "random:" in str(rows)
    with pytest.raises(InputError, match="at least 1"):
        found.compare_random(0)


@pytest.mark.parametrize("rule", ["momentum", "adamw"])
def test_training_is_the_optimizer_by_hand(make_net, loss, samples, rule):
    """Momentum .9, weight decay 3e-4, clipping at 5, the schedule: torch gives the same."""
    found = search_module(make_net(), loss, samples, steps=6, batch_size=8, search={"weights": {"rule": rule}})
    setup = found.setup
    network, by_hand = found.network(fresh=True), found.network(fresh=True).train()
    train_plain(network, setup, 4, seed=7)
    from nas_moreau.distributed import Shard
    from nas_moreau.modules.stream import Stream
    from nas_moreau.search.methods import build_method

    numbers = sorted({*setup.data.lower.numbers, *setup.data.upper.numbers})
    stream = Stream(setup.data.lower.samples, numbers, 8, 7, "training", Shard(0, 8, 8), setup.device)
    search = setup.config.search.model_copy(update={"method": "lower-only", "epochs": 4})  # four steps: four epochs
    rate = build_method(search, 1)[1].weights_lr
    if rule == "adamw":
        optimizer = torch.optim.AdamW(by_hand.parameters(), lr=1.0, betas=(0.9, 0.999), weight_decay=3e-4)
    else:
        optimizer = torch.optim.SGD(by_hand.parameters(), lr=1.0, momentum=0.9, weight_decay=3e-4)
    for step in range(4):
        optimizer.param_groups[0]["lr"] = rate(step)
        optimizer.zero_grad()
        setup.whole.loss(by_hand, stream.batch(step)).backward()
        nn.utils.clip_grad_norm_(by_hand.parameters(), 5.0)
        optimizer.step()
    for (name, a), b in zip(network.named_parameters(), by_hand.parameters()):
        if name != "first.bias":  # before a normalisation: its gradient is rounding, which AdamW makes large
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_an_export_needs_a_folder_that_exists(found, tmp_path):
    for path in (tmp_path / "nowhere" / "net.pt2", tmp_path):
        with pytest.raises(InputError, match="cannot be written"):
            found.export("torch-export", path)
