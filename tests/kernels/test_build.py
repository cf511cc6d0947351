"""Where native operators cannot be had, one line says so and the portable path does the work."""

import os
import subprocess
import sys

import pytest
import torch

from nas_moreau.architecture import Supernet, load_space
from nas_moreau.errors import InputError
from nas_moreau.kernels import build
from nas_moreau.kernels import cell as kernel


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NAS_MOREAU_CACHE", str(tmp_path))
    monkeypatch.delenv("NAS_MOREAU_NATIVE", raising=False)
    build.load.cache_clear()
    yield tmp_path
    build.load.cache_clear()


def test_without_a_compiler_one_line_says_so(empty_cache, monkeypatch, capsys):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert build.load() is False
    notice = capsys.readouterr().err
    assert notice.count("\n") == 1 and "no C++ compiler" in notice and "portable" in notice


def test_a_compiler_that_fails_leaves_nothing_behind(empty_cache, monkeypatch, capsys):
    compiler = empty_cache / "failing"
    compiler.write_text("#!/bin/sh\necho 'error: it is broken' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    assert build.load() is False
    assert "it is broken" in capsys.readouterr().err
    assert [path.name for path in empty_cache.iterdir()] == ["failing"]


def test_a_damaged_library_is_not_fatal(empty_cache, capsys):
    library = build.library_path()
    library.write_bytes(b"not a library")
    assert build.load() is False
    assert "could not be loaded" in capsys.readouterr().err


def test_the_switch_turns_native_operators_off(empty_cache, monkeypatch, capsys):
    monkeypatch.setenv("NAS_MOREAU_NATIVE", "0")
    assert build.load() is False and capsys.readouterr().err == ""
    assert not list(empty_cache.iterdir())


def test_the_library_depends_on_flags_and_compiler(empty_cache, monkeypatch):
    paths = {build.library_path()}
    monkeypatch.setenv("NAS_MOREAU_CXXFLAGS", "-g")
    paths.add(build.library_path())
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert len(paths | {build.library_path()}) == 3


def test_kernels_that_are_asked_for_and_missing_are_an_error(monkeypatch):
    monkeypatch.setattr(kernel, "available", lambda: False)
    with pytest.raises(InputError, match="not available"):
        Supernet(load_space("toy"), 2, 1, kernels="native")
    with pytest.raises(InputError, match="portable"):
        Supernet(load_space("toy"), 2, 1, kernels="fastest")
    supernet = Supernet(load_space("toy"), 2, 1)
    assert supernet(torch.randn(2, 3, 8, 8)).shape == (2, 10)


def test_import_does_no_work(empty_cache):
    code = (
        "import nas_moreau.architecture.networks.supernet, nas_moreau.kernels.build as b; "
        "assert not b.load.cache_info().currsize"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=dict(os.environ))
    assert not list(empty_cache.iterdir())
