"""The search stage on the toy space: determinism, exact resume, the three-way split, bad input."""

import functools
import json
from dataclasses import replace

import pytest
import torch

from nas_moreau.architecture import Genotype, derive, load_space
from nas_moreau.bilevel.methods import METHODS
from nas_moreau.config import SearchConfig
from nas_moreau.errors import InputError
from nas_moreau.runs import load_checkpoint
from nas_moreau.runs.tables import read_table
from nas_moreau.search import mixing
from nas_moreau.search.derive import derive_ensemble, derive_run
from nas_moreau.search.methods import build_method, parse_method, search_supernet
from nas_moreau.search.problem import beta_term
from nas_moreau.search.schedules import cosine
from nas_moreau.search.stage import search
from nas_moreau.search.supernet_problem import Batch, supernet_problem
from nas_moreau.training.signals import Interrupted, NonFinite

SETTINGS = ["search.alphas.lr=0.05", "search.alphas.lr_min=0.05"]

EVERY = [
    "moreau+beta",
    "moreau-gauss-seidel",
    "moreau-jacobi",
    "darts1",
    "darts2",
    "gdas+beta",
    "drnas",
    "rsws",
    "moreau+beta+pc",
    "darts2+pc+beta",
]


@pytest.fixture(autouse=True)
def few_genotypes(monkeypatch):
    """What rsws measures at its end."""
    monkeypatch.setattr(mixing, "GENOTYPES", 4)


@pytest.fixture
def tiny(tiny_config):
    return lambda *overrides: tiny_config(*SETTINGS, *overrides)


def configured(make, method, *overrides):
    wider = ["search.channels=4", "search.partial_channels=2"] if "+pc" in method else []
    return make(*SETTINGS, f"search.method={method}", *wider, *overrides)


@pytest.fixture
def tiny_for(tiny_config):
    """The tiny configuration with a method; partial channels need twice as many of them."""

    return lambda method, *overrides: configured(tiny_config, method, *overrides)


def bytes_of(folder):
    """What must be equal between two runs: alphas, weights, genotype, metrics without their clock."""
    rows = [row.rsplit(",", 1)[0] for row in (folder / "metrics.csv").read_text().splitlines()]
    state = load_checkpoint(folder / "checkpoints")[0]
    tensors = [t.numpy().tobytes() for t in (*state["x"], *state["y"], *state["buffers"].values())]
    return rows, (folder / "alphas.csv").read_bytes(), (folder / "genotype.json").read_bytes(), tensors


@pytest.fixture(scope="module")
def whole(tiny_config, tiny_data, tmp_path_factory):
    """Returns a function from a method to its search, result and folder; each is done once."""

    @functools.cache
    def searched(method):
        folder = tmp_path_factory.mktemp("whole") / "a"
        return search(configured(tiny_config, method), folder, data=tiny_data), folder

    return searched


@pytest.mark.parametrize("name", [name for name, info in METHODS.items() if "published" not in info.needs])
def test_every_bilevel_method_of_the_table_searches(name, tmp_path, tiny, tiny_data):
    config = tiny(f"search.method={name}", "search.epochs=1", "logging.tensorboard=false")
    result = search(config, tmp_path / "run", data=tiny_data)
    assert result.method == name and result.steps == 2
    (row,) = read_table(tmp_path / "run" / "metrics.csv")
    assert float(row["held_out_loss"]) > 0 and all(float(v) == float(v) for v in row.values() if v)


@pytest.mark.parametrize("method", EVERY)
def test_every_method_searches_and_repeats_itself(method, tmp_path, tiny_for, tiny_data, whole):
    result, folder = whole(method)
    results = [result, search(tiny_for(method), tmp_path, data=tiny_data)]
    assert bytes_of(folder) == bytes_of(tmp_path)
    first, second = (replace(result, wall_seconds=0.0, peak_memory_bytes=0) for result in results)
    assert first == second and first.method == method and first.steps == 6
    genotype = Genotype.from_json((folder / "genotype.json").read_text())
    assert genotype == first.genotype and first.to_dict()["digest"] == genotype.digest()
    load_space("toy").check(genotype)
    for table in first.to_dict()["alphas"].values():
        assert all(abs(sum(row) - 1) < 1e-9 for row in table)
    for name in (
        "config.yaml",
        "environment.json",
        "status.json",
        "log.txt",
        "genotype.svg",
        "genotype.png",
        "result.json",
        "tensorboard",
    ):
        assert (folder / name).exists(), name


@pytest.mark.parametrize(
    "method, stop_after",
    [
        *[(method, step) for method in ("moreau", "darts2") for step in (1, 2, 3, 5)],
        ("gdas", 3),
        ("drnas+pc", 3),
        ("rsws", 3),
        ("rsws", 5),
    ],
)
def test_a_stopped_and_resumed_search_gives_the_same_bytes(
    method, stop_after, tmp_path, tiny_for, tiny_data, stop_at, whole
):
    config = tiny_for(method)
    with pytest.raises(Interrupted, match="SIGTERM"):
        search(config, tmp_path / "parts", data=tiny_data, hooks=[stop_at(stop_after)])
    assert json.loads((tmp_path / "parts" / "status.json").read_text())["state"] == "interrupted"
    search(config, tmp_path / "parts", resume=True, data=tiny_data)
    assert bytes_of(whole(method)[1]) == bytes_of(tmp_path / "parts")


def test_a_finished_search_gives_its_result_again(tmp_path, tiny, tiny_data):
    config = tiny()
    first = search(config, tmp_path / "a", data=tiny_data)
    before = (tmp_path / "a" / "metrics.csv").read_bytes()
    assert search(config, tmp_path / "a", resume=True, data=tiny_data) == first
    assert (tmp_path / "a" / "metrics.csv").read_bytes() == before


def test_a_number_that_is_not_finite_stops_at_once_and_is_not_saved(tmp_path, tiny, tiny_data):
    with pytest.raises(NonFinite, match="step"):
        search(tiny("search.weights.lr=1e30", "search.weights.clip=null"), tmp_path / "a", data=tiny_data)
    status = json.loads((tmp_path / "a" / "status.json").read_text())
    assert status["state"] == "failed" and "not finite" in status["reason"]


def test_random_draws_a_cell_of_the_space_by_the_seed(tmp_path, tiny, tiny_data):
    digests = []
    for seed in (0, 0, 1):
        result = search(tiny("search.method=random", f"seed={seed}"), tmp_path / str(len(digests)), data=tiny_data)
        digests.append(result.digest)
    assert digests[0] == digests[1] != digests[2]


def test_rsws_ends_with_alphas_that_stand_for_its_cell(tmp_path, tiny, tiny_data):
    result = search(tiny("search.method=rsws"), tmp_path / "a", data=tiny_data)
    log = (tmp_path / "a" / "log.txt").read_text()
    assert f"{result.digest} has the lowest loss" in log and log.count("lowest loss") == 1
    assert derive_run(tmp_path / "a", tiny()).genotype.digest() == result.digest
    assert all(max(row) > 0.99 for table in result.to_dict()["alphas"].values() for row in table)
    columns = (tmp_path / "a" / "metrics.csv").read_text().splitlines()[0].split(",")
    assert "lower_accuracy" in columns and "upper_accuracy" not in columns


def test_partial_channels_bring_weights_of_edges_into_x_and_the_cell(tmp_path, tiny_for, tiny_data):
    config = tiny_for("darts1+pc")
    result = search(config, tmp_path / "a", data=tiny_data)
    shares = result.to_dict()["edge_weights"]
    assert {name: len(row) for name, row in shares.items()} == {"normal": 5, "reduce": 5}
    for row in shares.values():
        assert sum(row[:2]) == pytest.approx(1) and sum(row[2:]) == pytest.approx(1)
        assert len({round(share, 6) for share in row}) > 1  # they have been learnt
    alphas = load_checkpoint(tmp_path / "a" / "checkpoints")[0]["alphas"]
    assert list(alphas) == ["normal", "reduce", "edge_normal", "edge_reduce"]
    # the edge that the alphas would leave out is kept where its weight is large
    cell = derive(load_space("toy"), {name: alphas[name] for name in ("normal", "reduce")}).cells["normal"]
    (out,) = {0, 1, 2} - {source for _, source, target in cell.edges if target == 3}
    alphas["edge_normal"][2 + out] = 5.0
    again = derive(load_space("toy"), alphas).cells["normal"]
    assert out in {source for _, source, target in again.edges if target == 3}


@pytest.mark.parametrize("rule", ["edge-normalised", "perturbation", "selection"])
def test_every_rule_takes_a_search_with_partial_channels(rule, tmp_path, tiny_for, tiny_data):
    config = tiny_for("darts1+pc", f"derive.rule={rule}")
    result = search(config, tmp_path / "a", data=tiny_data)
    load_space("toy").check(result.genotype)
    ensemble = derive_ensemble([tmp_path / "a"], tiny_for("darts1+pc"))
    assert ensemble.genotype == result.derived.before


# --- the problem -----------------------------------------------------------------------------------------------------


def small_supernet(method="moreau"):
    settings = SearchConfig(method=method, channels=4 if "+pc" in method else 2, layers=3, partial_channels=2)
    return search_supernet(load_space("toy"), settings, 3, 3)


def small_problem(beta=0.0, method="moreau"):
    torch.manual_seed(0)
    supernet = small_supernet(method).double()
    draw = torch.Generator().manual_seed(1)
    images = torch.randn((4, 3, 8, 8), dtype=torch.float64, generator=draw)
    batch = Batch(images, torch.tensor([0, 1, 2, 1]), 0.5)
    return supernet, supernet_problem(supernet, beta, mix=parse_method(method).mix), batch


def test_only_f_at_y_moves_the_running_statistics():
    supernet, made, batch = small_problem()
    before = {name: buffer.clone() for name, buffer in supernet.named_buffers()}

    def moved():
        return any(not torch.equal(buffer, before[name]) for name, buffer in supernet.named_buffers())

    made.problem.F(made.x, made.y, batch)
    made.problem.f_theta(made.x, made.y, batch)
    assert not moved()
    assert any(not torch.equal(buffer, before[name]) for name, buffer in made.theta_buffers.items())
    made.problem.f(made.x, made.y, batch)
    assert moved()


@pytest.mark.parametrize("method", EVERY)
def test_a_step_leaves_parameters_and_inputs_alone(method, tiny_for):
    supernet, made, batch = small_problem(1.0, method)
    parameters = [p.detach().clone() for p in supernet.parameters()]
    x, y = [t.clone() for t in made.x], [t.clone() for t in made.y]
    chosen, _ = build_method(tiny_for(method).search, 2)
    state = chosen.init(made.problem, made.x, made.y)
    new_x, new_y, state, info = chosen.step(made.problem, made.x, made.y, state, upper_batch=batch, lower_batch=batch)
    assert all(torch.equal(a, b) for a, b in zip(x + y, made.x + made.y))
    assert all(torch.equal(a, b) for a, b in zip(parameters, supernet.parameters()))
    moved = [any(not torch.equal(a, b) for a, b in zip(old, new)) for old, new in ((x, new_x), (y, new_y))]
    assert moved == [parse_method(method).learns_alphas, True]
    assert int(info.f_aux.correct) in range(5) and not any(t.requires_grad for t in (*new_x, *new_y))


@pytest.mark.parametrize("method", EVERY)
def test_a_whole_step_runs_on_the_meta_device(method, tiny_for):
    with torch.device("meta"):
        supernet = small_supernet(method)
        batch = Batch(torch.empty(4, 3, 8, 8), torch.empty(4, dtype=torch.int64), 0.5)
    made = supernet_problem(supernet, 1.0, mix=parse_method(method).mix)
    chosen, _ = build_method(tiny_for(method).search, 2)
    state = chosen.init(made.problem, made.x, made.y)
    x, y, state, info = chosen.step(made.problem, made.x, made.y, state, upper_batch=batch, lower_batch=batch)
    assert all(t.device.type == "meta" for t in (*x, *y, info.f)) and (info.F is None or info.F.is_meta)


def test_the_alphas_get_minus_the_gradient_at_theta(tiny):
    """theta's share of d_x: alphas copied into theta's own module would lose it (moreau with F = 0 shows it alone)."""
    _, made, batch = small_problem()
    theta = [t + 0.1 * torch.randn(t.shape, dtype=t.dtype, generator=torch.Generator().manual_seed(2)) for t in made.y]
    chosen, _ = build_method(tiny("search.method=moreau").search, 2)
    state = chosen.init(made.problem, made.x, made.y)._replace(theta=theta)
    _, _, _, info = chosen.step(made.problem, made.x, made.y, state, upper_batch=batch, lower_batch=batch)
    x = [t.clone().requires_grad_() for t in made.x]

    def gradient(function, weights):
        return torch.autograd.grad(function(x, weights, batch)[0], x)

    upper, at_y, at_theta = (
        gradient(made.problem.F, made.y),
        gradient(made.problem.f, made.y),
        gradient(made.problem.f_theta, theta),
    )
    expected = [a / info.c + b - c for a, b, c in zip(upper, at_y, at_theta)]
    norm = torch.sqrt(sum((t**2).sum() for t in expected))
    torch.testing.assert_close(info.norms["d_x"], norm, rtol=1e-9, atol=0)
    assert info.norms["phi_x_theta"] > 0


def test_beta_term_is_the_mean_logsumexp_over_edges():
    alphas = [torch.tensor([[0.0, 0.0], [1.0, 1.0]]), torch.tensor([[2.0, 2.0]])]
    torch.testing.assert_close(beta_term(alphas), torch.tensor(1.0) + torch.log(torch.tensor(2.0)))


# --- names and schedules ---------------------------------------------------------------------------------------------


def test_cosine_starts_at_the_base_rate_and_changes_once_an_epoch():
    rate = cosine(0.1, 0.02, epochs=4, steps_per_epoch=5)
    assert rate(0) == rate(4) == 0.1
    assert rate(10) == pytest.approx(0.06)
    assert rate(5) > rate(10) > rate(19) > 0.02


def test_method_names():
    found = parse_method("moreau+beta")
    assert (found.info.name, found.mixing, found.additions) == ("moreau", None, {"beta"}) and found.learns_alphas
    assert parse_method("darts1+pc+beta").additions == parse_method("darts1+beta+pc").additions == {"beta", "pc"}
    assert parse_method("gdas").info.name == "darts1" and parse_method("gdas").mixing.name == "gdas"
    assert parse_method("random").is_random and not parse_method("rsws").learns_alphas
    for name, match in (
        ("morau", "Did you mean 'moreau'"),
        ("darts1+gamma", "cannot follow"),
        ("random+beta", "cannot"),
        ("rsws+beta", "cannot"),
        ("rsws+pc", "cannot"),
        ("random+pc", "cannot"),
        ("moreau+pc+pc", "twice"),
        ("moreau+", "cannot follow"),
    ):
        with pytest.raises(InputError, match=match):
            parse_method(name)


def test_parts_smaller_than_a_batch_are_refused_before_anything_is_written(tmp_path, tiny, tiny_data):
    with pytest.raises(InputError, match="fewer than a batch"):
        search(tiny("search.batch_size=40"), tmp_path / "a", data=tiny_data)
    assert not (tmp_path / "a").exists()


# --- performance options ---------------------------------------------------------------------------------------------


@pytest.fixture
def alphas_after(tiny, tiny_data):
    def run(folder, *overrides):
        result = search(tiny("search.epochs=1", *overrides), folder, data=tiny_data)
        return torch.tensor(
            [row for table in result.to_dict()["alphas"].values() for row in table], dtype=torch.float64
        )

    return run


@pytest.mark.parametrize(
    "overrides, tolerance",
    [
        (["performance.channels_last=false"], 1e-4),
        (["performance.precision=bfloat16"], 0.05),
        (["performance.activation_checkpointing=true"], 1e-6),
    ],
)
def test_performance_options_give_the_same_alphas_up_to_rounding(overrides, tolerance, tmp_path, alphas_after):
    plain, changed = alphas_after(tmp_path / "a"), alphas_after(tmp_path / "b", *overrides)
    torch.testing.assert_close(changed, plain, rtol=0, atol=tolerance)


@pytest.mark.slow
def test_a_compiled_supernet_gives_the_same_alphas(tmp_path, monkeypatch, alphas_after):
    import functools

    short = ["search.layers=1", "search.method=darts1", "search.steps_per_epoch=1"]
    plain = alphas_after(tmp_path / "a", *short)
    # the graph and its derivatives are captured as with the default backend; only the code generator is left out
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    compiled = alphas_after(tmp_path / "b", *short, "performance.compile=true")
    torch.testing.assert_close(compiled, plain, rtol=0, atol=1e-4)
