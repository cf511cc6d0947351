"""Our networks under timm's protocol: what its generic model test asserts of every model, and what its trainer does."""

import json
import math
import subprocess
import sys

import pytest
import torch

timm = pytest.importorskip("timm")

from timm.layers import create_feature_extractor, get_graph_node_names  # noqa: E402
from timm.models import FeatureInfo, group_modules, group_parameters  # noqa: E402

import nas_moreau.timm_models as ours  # noqa: E402
from nas_moreau.architecture import Network, cell_names, parameter_count, published_cell  # noqa: E402
from nas_moreau.errors import InputError  # noqa: E402

BENCH = "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|avg_pool_3x3~0|none~1|nor_conv_1x1~2|"
SMALL = {"channels": 4, "layers": 6}
# name, further arguments
MODELS = [(name, SMALL) for name in ["nas_moreau", *cell_names()]]
MODELS += [("nas_moreau", {"genotype": BENCH, "channels": 4, "layers": 1})]
MODELS += [("nas_moreau", {"genotype": "PDARTS", "channels": 4, "layers": layers}) for layers in (1, 2, 3)]
IDS = [f"{name}-{options.get('genotype', '')[:6]}-{options['layers']}" for name, options in MODELS]
each_model = pytest.mark.parametrize("name, options", MODELS, ids=IDS)


def create(name, options, **more):
    torch.manual_seed(0)
    return timm.create_model(name, **(options | more))


def images(model, count=2):
    return torch.randn(count, *model.default_cfg["input_size"], generator=torch.Generator().manual_seed(1))


def test_each_cell_is_a_model_by_its_name_and_the_names_can_be_imported():
    assert timm.list_models(module="timm_models") == sorted(["nas_moreau", *cell_names()], key=str.lower)
    assert all(callable(getattr(ours, name)) for name in ours.__all__)


@pytest.mark.parametrize("name", ["DARTS_V2", "NASNet"])
def test_a_cell_by_its_name_has_the_published_size(name):
    with torch.device("meta"):
        assert parameter_count(timm.create_model(name)) == parameter_count(Network(published_cell(name)))


@each_model
def test_forward(name, options):
    model = create(name, options).eval()
    out = model(images(model, 1))
    assert out.shape == (1, 10) and out.isfinite().all()


@each_model
def test_backward_reaches_every_parameter(name, options):
    model = create(name, options, num_classes=42).train()
    out = model(images(model))
    out.mean().backward()
    assert out.shape == (2, 42) and out.isfinite().all()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


@each_model
def test_configuration_heads_and_pooling(name, options):
    model = create(name, options).eval()
    state, cfg = model.state_dict(), model.default_cfg
    x, pool_size = images(model, 1), tuple(cfg["pool_size"])
    features = model.forward_features(x)
    assert features.shape == (1, model.num_features, *pool_size)
    before = model.forward_head(features, pre_logits=True)
    assert before.shape == (1, model.head_hidden_size)
    assert torch.equal(model.forward_head(features), model.get_classifier()(before))
    assert torch.equal(model(x), model.forward_head(features))
    model.reset_classifier(0)
    assert model.num_classes == 0 and torch.equal(model(x), before)
    model.reset_classifier(0, "")
    assert torch.equal(model(x), features)
    model.reset_classifier(7, "avg")
    assert model(x).shape == (1, 7)
    model.reset_classifier(7, "catavgmax")
    assert model(x).shape == (1, 7) and model.head_hidden_size == 2 * model.num_features
    assert create(name, options, num_classes=0, global_pool="").eval()(x).shape == features.shape
    assert create(name, options, num_classes=0).eval()(x).shape == before.shape
    for key in ("classifier", "first_conv"):
        assert f"{cfg[key]}.weight" in state


@each_model
def test_features_only(name, options):
    model = create(name, options, features_only=True).eval()
    channels, reductions = model.feature_info.channels(), model.feature_info.reduction()
    assert len(channels) >= (2 if options["layers"] == 1 and "genotype" in options else 3)
    maps = model(images(model, 1))
    size = model.default_cfg["input_size"][-1]
    assert [tuple(m.shape) for m in maps] == [(1, c, size // r, size // r) for c, r in zip(channels, reductions)]
    some = create(name, options, features_only=True, out_indices=(0, 1)).eval()
    assert [torch.equal(a, b) for a, b in zip(some(images(model, 1)), maps)] == [True, True]
    assert sum(1 for _ in some.parameters()) <= sum(1 for _ in model.parameters())
    hooked = create(name, options, features_only=True, feature_cls="hook", out_indices=(0, -1)).eval()
    assert [m.shape for m in hooked(images(model, 1))] == [maps[0].shape, maps[-1].shape]


@each_model
def test_intermediates(name, options):
    model = create(name, options).eval()
    info, x = FeatureInfo(model.feature_info, len(model.feature_info)), images(model, 1)
    out, maps = model.forward_intermediates(x)
    assert len(maps) == len(info.channels())
    for channels, reduction, found in zip(info.channels(), info.reduction(), maps):
        assert found.shape[1] == channels and found.shape[2] <= math.ceil(x.shape[2] / reduction) + 1
    assert torch.equal(out, model.forward_features(x))
    model.set_grad_checkpointing()
    torch.testing.assert_close(model.forward_intermediates(x)[0], out)
    last = model.forward_intermediates(x, indices=1, norm=True, intermediates_only=True)
    assert len(last) == 1 and torch.equal(last[0], out)
    early, first = model.forward_intermediates(x, indices=[1], stop_early=True)
    assert torch.equal(early, maps[1]) or len(maps) == 2
    assert torch.equal(first[0], maps[1])
    with pytest.raises(ValueError, match="NCHW"):
        model.forward_intermediates(x, output_fmt="NHWC")


def traced(model, train):
    nodes = get_graph_node_names(model)[0 if train else 1]
    return create_feature_extractor(model, [nodes[-1]])


@each_model
def test_symbolic_traces_give_the_same_numbers(name, options):
    model = create(name, options).eval()
    x = images(model, 1)
    with torch.no_grad():
        (found,) = traced(model, train=False)(x).values()
        assert torch.equal(found, model(x))


def test_a_symbolic_trace_trains():
    model = create("nas_moreau", SMALL).train()
    (out,) = traced(model, train=True)(images(model)).values()
    out.mean().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("options", [{"genotype": "AmoebaNet", **SMALL}, MODELS[10][1]], ids=["AmoebaNet", "bench"])
def test_checkpointing_leaves_gradients_as_they_are(options):
    gradients = []
    for enable in (False, True):
        model = create("nas_moreau", options, drop_path_rate=0.3).train()
        model.set_grad_checkpointing(enable)
        torch.manual_seed(5)
        model(images(model)).square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(gradients[1], gradients[0])


@each_model
@pytest.mark.parametrize("coarse", [False, True])
def test_groups_of_parameters_follow_the_depth(name, options, coarse):
    model = create(name, options)
    matcher = model.group_matcher(coarse)
    layer_of = group_parameters(model, matcher, reverse=True)
    assert layer_of["stem.0.weight"] == 0 and set(layer_of) == {n for n, _ in model.named_parameters()}
    of_cells = {n: layer for n, layer in layer_of.items() if n.startswith("cells.")}
    groups = len(model.feature_info) - 1 if coarse else len({n.split(".")[1] for n in of_cells})
    depths = [of_cells[n] for n, _ in model.named_parameters() if n in of_cells]
    assert depths == sorted(depths) and {*depths} == {*range(1, groups + 1)}
    assert layer_of["classifier.weight"] == groups + 1
    assert group_modules(model, matcher)


def test_any_image_size_channels_and_type():
    model = create("nas_moreau", SMALL, in_chans=1, num_classes=3, dtype=torch.float64).eval()
    for size in ((28, 28), (33, 20), (96, 64)):
        assert model(torch.randn(1, 1, *size, dtype=torch.float64)).shape == (1, 3)
    with pytest.raises(InputError, match="too small"):
        model(torch.randn(1, 1, 4, 4, dtype=torch.float64))
    assert next(create("nas_moreau", SMALL, device="meta").parameters()).is_meta


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("classes", [10, 0])
def test_scripting(classes):
    model = create("nas_moreau", SMALL, num_classes=classes, scriptable=True).eval()
    scripted = torch.jit.script(model)
    assert torch.equal(scripted(images(model)), model(images(model)))
    assert set(scripted.state_dict()) == set(model.state_dict())


def test_dropout_and_drop_path_act_in_training_alone():
    for options in ({"drop_rate": 0.5}, {"drop_path_rate": 0.5}):
        model = create("nas_moreau", SMALL, **options)
        x = images(model)
        assert not torch.equal(model.train()(x), model.train()(x))
        assert torch.equal(model.eval()(x), model.eval()(x))


def test_genotypes_from_every_place(tmp_path):
    cell = published_cell("GDAS_V1")
    (tmp_path / "run" / "search").mkdir(parents=True)
    (tmp_path / "run" / "search" / "genotype.json").write_text(cell.to_json())
    places = [
        tmp_path / "run",
        tmp_path / "run" / "search" / "genotype.json",
        cell.to_json(),
        cell.to_dict(),
        cell,
        "GDAS_V1",
        cell.to_printed(),
    ]
    for place in places:
        assert create("nas_moreau", SMALL, genotype=place).genotype == cell
    with pytest.raises(InputError, match="DARTS_V"):
        create("nas_moreau", SMALL, genotype="DARTS_V9")


def test_weights_of_a_retraining_fit_as_they_are_and_for_other_classes_and_channels():
    torch.manual_seed(3)
    network = Network(published_cell("PDARTS"), 4, 6, 5, auxiliary=True).eval()
    overlay = {"state_dict": network.state_dict(), "num_classes": 5}
    options = SMALL | {"genotype": "PDARTS", "pretrained": True, "pretrained_cfg_overlay": overlay}
    model = create("nas_moreau", options, num_classes=5).eval()
    x = images(model)
    torch.testing.assert_close(model(x), network(x))
    other = create("nas_moreau", options, num_classes=7, in_chans=1)
    assert torch.equal(other.cells[0].preprocess[0][1].weight, network.cells[0].preprocess[0][1].weight)
    torch.testing.assert_close(other.stem[0].weight, network.stem[0].weight.sum(1, keepdim=True))
    with pytest.raises(RuntimeError, match="No pretrained weights"):
        create("nas_moreau", SMALL, pretrained=True)


def test_a_saved_model_loads_from_its_folder(tmp_path):
    from timm.models import save_for_hf

    model = create("nas_moreau", SMALL, genotype=published_cell("PDARTS").to_dict(), num_classes=3).eval()
    save_for_hf(model, str(tmp_path), safe_serialization=True)
    assert json.loads((tmp_path / "config.json").read_text())["architecture"] == "nas_moreau"
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert again.genotype == model.genotype and torch.equal(again(images(model)), model(images(model)))


def test_what_the_training_script_does(tmp_path):
    """timm's train.py with `--device-modules nas_moreau.timm_models --model nas_moreau --model-kwargs genotype=...`."""
    code = f"""
import importlib, torch
importlib.import_module("nas_moreau.timm_models")
from timm import create_model
from timm.data import resolve_data_config
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3
torch.manual_seed(0)
model = create_model("nas_moreau", pretrained=False, in_chans=3, num_classes=7, drop_rate=0.1, drop_path_rate=0.2,
    drop_block_rate=None, global_pool=None, bn_momentum=None, bn_eps=None, scriptable=False, checkpoint_path="",
    genotype="PC_DARTS_cifar", channels=4, layers=3)
model.set_grad_checkpointing(enable=True)
config = resolve_data_config({{}}, model=model)
assert config["input_size"] == (3, 32, 32) and config["crop_pct"] == 1.0
model = model.to(memory_format=torch.channels_last)
optimizer = create_optimizer_v2(model, opt="sgd", lr=0.1, weight_decay=3e-4, momentum=0.9, layer_decay=0.7)
scheduler, _ = create_scheduler_v2(optimizer, "cosine", num_epochs=3)
ema = ModelEmaV3(model, decay=0.9)
x = torch.randn(4, *config["input_size"]).contiguous(memory_format=torch.channels_last)
before = [p.detach().clone() for p in model.parameters()]
loss = LabelSmoothingCrossEntropy(0.1)(model.train()(x), torch.arange(4))
loss.backward()
optimizer.step()
ema.update(model)
scheduler.step(1)
assert loss.isfinite() and all(not torch.equal(a, b) for a, b in zip(before, model.parameters()))
torch.save({{"state_dict": model.state_dict(), "arch": "nas_moreau"}}, {str(tmp_path / "last.pth.tar")!r})
create_model("nas_moreau", num_classes=7, genotype="PC_DARTS_cifar", channels=4, layers=3,
    checkpoint_path={str(tmp_path / "last.pth.tar")!r})
print("done")
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "done", done.stderr
