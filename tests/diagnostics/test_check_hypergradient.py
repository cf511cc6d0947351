"""The check of directions: that it holds for what is right, and that it catches what is wrong."""

import json

import pytest
import torch

from nas_moreau.bilevel.exact import exact_hypergradient, flat
from nas_moreau.bilevel.methods import METHODS
from nas_moreau.bilevel.rivals import darts
from nas_moreau.bilevel.tensors import add, grad_x, grad_y, norm, subtract, value_and_grads
from nas_moreau.cli import main
from nas_moreau.config import load_config
from nas_moreau.diagnostics import check_hypergradient as stage
from nas_moreau.diagnostics.direction_table import Check, DirectionRow, Directions
from nas_moreau.diagnostics.saved_memory import peak_saved_bytes
from nas_moreau.diagnostics.tiny_supernet import tiny_supernet
from nas_moreau.errors import InputError

ROW = {"part", "method", "c", "cosine", "relative_error", "norm", "seconds", "memory_bytes", "verdict"}


@pytest.fixture(scope="module")
def tiny():
    return tiny_supernet(1, layers=1)


@pytest.fixture(scope="module")
def exact(tiny):
    return exact_hypergradient(tiny.problem, tiny.x, tiny.y, tiny.upper_batch, tiny.lower_batch)


def test_the_oracles_agree_on_a_supernet(tiny, exact, monkeypatch):
    rows, checks = stage.compare_oracles(tiny, exact, 0.0)
    assert exact.residual <= 1e-10 and exact.lowest > 0 and exact.y[0].dtype == torch.float64
    assert [row.method for row in rows] == ["implicit", "unrolled", "differences"]
    assert all(check.passed for check in checks) and len(checks) == 2
    wrong = [t * (1 + 1e-5) for t in exact.d_x]
    monkeypatch.setattr(stage, "unrolled_hypergradient", lambda *args: (wrong, 1))
    monkeypatch.setattr(stage, "value_differences", lambda *args: wrong)
    assert not any(check.passed for check in stage.compare_oracles(tiny, exact, 0.0)[1])


def test_moreau_comes_to_the_hypergradient_with_order_one(tiny, exact):
    rows, checks = stage.compare_penalties(tiny, exact, (10.0, 100.0, 1000.0))
    assert [row.c for row in rows] == [10, 100, 1000]
    assert all(check.passed for check in checks) and len(checks) == 2
    errors = [row.relative_error for row in rows]
    assert errors[1] / errors[2] == pytest.approx(10, rel=0.1)
    wrong = exact._replace(d_x=[-t for t in exact.d_x])
    assert not any(check.passed for check in stage.compare_penalties(tiny, wrong, (100.0,))[1])


def test_fitted_order():
    assert stage.fitted_order([(1.0, 3.0), (10.0, 0.03), (100.0, 3e-4)]) == pytest.approx(2)
    assert stage.fitted_order([(1.0, 3.0), (10.0, None)]) is None


def test_the_tiny_supernet_has_no_kink(monkeypatch, tiny):
    def kinky(*args, **kwargs):
        raise AssertionError("ReLU or max pool")

    for name in ("relu", "max_pool2d"):
        monkeypatch.setattr(torch.nn.functional, name, kinky)
    made = tiny_supernet(3)
    value_and_grads(made.problem.F, made.x, made.y, made.upper_batch)
    with pytest.raises(AssertionError, match="ReLU"):
        torch.nn.functional.relu(made.x[0])


def faulty(sizes):
    """darts2 with the published fault: (p - n) / 2. * eps in place of (p - n) / (2 * eps)."""

    def direction(problem, x, y, state, batches):
        xi = sizes.beta(state.k)
        ahead = grad_y(problem.f, x, y, batches.lower)
        if (momentum := sizes.update_y.part("momentum", state.y_rule)).state:
            ahead = add(ahead, momentum.state, momentum.factor)
        found = value_and_grads(problem.F, x, add(y, ahead, -xi), batches.upper)
        eps = float(0.01 / norm(found.grad_y))
        shift = [eps * v for v in found.grad_y]
        plus = grad_x(problem.f, x, add(y, shift), batches.lower)
        minus = grad_x(problem.f, x, subtract(y, shift), batches.lower)
        second = [(p - n) / 2.0 * eps for p, n in zip(plus, minus)]
        return darts.Direction(add(found.grad_x, second, -xi), found, {})

    return darts.alternating(sizes.alpha, sizes.beta, direction, sizes.update_x, sizes.update_y)


def test_darts2_is_what_it_says_and_the_wrong_divisor_is_caught(tiny, exact, monkeypatch):
    right = stage.check_darts2(tiny, exact)
    assert right.passed and right.value <= 1e-6
    monkeypatch.setitem(METHODS, "darts2", METHODS["darts2"]._replace(build=faulty))
    wrong = stage.check_darts2(tiny, exact)
    assert not wrong.passed and wrong.value > 1e-4


OWN = """
from nas_moreau.bilevel import register_method
from nas_moreau.bilevel.rivals.darts import darts1

@register_method("check_test_mine", evaluations=2, source="a test")
def mine(sizes):
    return darts1(sizes.alpha, sizes.beta, sizes.update_x, sizes.update_y)

@register_method("check_test_broken", evaluations=1, source="a test")
def broken(sizes):
    raise RuntimeError("nothing here")
"""


@pytest.mark.slow
def test_the_command_checks_your_own_method_and_prints_json(tmp_path, capsys, monkeypatch, registrations_forgotten):
    (tmp_path / "mine.py").write_text(OWN)
    full = stage.check_hypergradient
    short = dict(layers=1, steps=3, penalties=(100.0, 1000.0))
    monkeypatch.setattr(stage, "check_hypergradient", lambda names, seed, note: full(names, seed, note=note, **short))
    names = "check_test_mine,darts1,darts2,moreau,rsws,rhg,check_test_broken"
    with registrations_forgotten():
        code = main(
            ["check-hypergradient", "--import", str(tmp_path / "mine.py"), "--method", names, "--seed", "1", "--json"]
        )
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert code == 0 and result["passed"] is True, result["checks"]
    assert all(set(row) >= ROW for row in result["rows"])
    rows = {row["method"]: row for row in result["rows"] if row["part"] == "as run"}
    assert list(rows) == names.split(",")
    mine, darts1 = rows["check_test_mine"], rows["darts1"]
    assert mine["cosine"] == darts1["cosine"] and mine["relative_error"] == darts1["relative_error"]
    shipped = load_config("nas_bench_201_cpu").search.moreau
    assert rows["moreau"]["c"] == pytest.approx(shipped.c * 4**shipped.p) and rows["darts1"]["c"] is None
    assert rows["rsws"]["cosine"] is None and "moves no alphas" in rows["rsws"]["verdict"]
    assert "nothing here" in rows["check_test_broken"]["verdict"]
    assert rows["rhg"]["memory_bytes"] > rows["darts1"]["memory_bytes"] > 0
    assert "Traceback" not in err


def test_a_failed_check_exits_with_1_and_an_unknown_method_with_2(capsys, monkeypatch):
    row = DirectionRow("exact", "implicit", None, "in words")
    found = Directions(0, 1, 1, 10.0, 0.1, 1.0, [row], [Check("a", 1.0, 0.1, False)])
    with monkeypatch.context() as patched:
        patched.setattr(stage, "check_hypergradient", lambda *args, **kwargs: found)
        assert main(["check-hypergradient"]) == 1
    out = capsys.readouterr().out
    assert "FAILS: a" in out and "in words" in out
    assert main(["check-hypergradient", "--method", "moreaux"]) == 2
    assert "moreau" in capsys.readouterr().err
    with pytest.raises(InputError, match="steps"):
        stage.check_hypergradient(["darts1"], steps=0)


def test_saved_bytes_are_those_held_at_one_time():
    x = torch.ones(1000, dtype=torch.float64, requires_grad=True)

    def once():
        torch.autograd.grad(x.exp().sum(), x)  # exp keeps its result: 8,000 bytes

    def three_in_turn():
        for _ in range(3):
            once()

    assert peak_saved_bytes(once) == peak_saved_bytes(three_in_turn) == 8000
    assert peak_saved_bytes(lambda: x.exp().exp()) == 16000


def test_directions_are_read_before_the_update_rule(tiny, exact):
    method, directions, y_steps = stage.recorded("darts1", stage.preset_search())
    state = method.init(tiny.problem, tiny.x, exact.y)
    method.step(tiny.problem, tiny.x, exact.y, state, upper_batch=tiny.upper_batch, lower_batch=tiny.lower_batch)
    wanted = grad_x(tiny.problem.F, tiny.x, exact.y, tiny.upper_batch)
    assert len(directions) == y_steps == 1 and stage.recorded("rhg", stage.preset_search()).y_steps == 10
    torch.testing.assert_close(flat(directions[0]), flat(wanted), rtol=0, atol=0)
