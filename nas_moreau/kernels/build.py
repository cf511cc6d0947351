"""Compiles the native operators at first use and keeps the result for the next time.

Nothing happens at import. `load()` returns whether the operators are available; the first call of a process looks for
a compiled library in the cache, else compiles one (half a minute). If that is not possible, it prints one line and the
portable path is used. Environment variables:

    NAS_MOREAU_NATIVE=0        never use native operators, nor kernels in Triton
    NAS_MOREAU_CACHE=DIR       folder of compiled libraries (default: the user's cache folder)
    NAS_MOREAU_CXXFLAGS=...    further compiler flags (a sanitizer, for example)
    CXX                        the compiler (default: c++, g++ or clang++)
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from functools import cache
from pathlib import Path

import torch

SOURCES = ("loops.h", "pooling.h", "plan.h", "cell.h", "memory.h", "gradient.h", "operators.cpp")
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-std=c++20")

SHOWN_SECONDS = 10.0
"""Between two lines while the compiler works."""


def _notice(text: str) -> None:
    with suppress(OSError):  # nobody reads it any more
        print(f"nas-moreau: {text}", file=sys.stderr, flush=True)


def switched_off() -> bool:
    """Returns whether the user wants none of our own kernels, on any device."""
    return os.environ.get("NAS_MOREAU_NATIVE", "1") == "0"


@cache
def load() -> bool:
    """Returns whether the native operators are usable, compiling them at their first use on this machine."""
    if switched_off():
        return False
    compiler, library = find_compiler(), library_path()
    if not library.exists():
        if compiler is None:
            _notice("no C++ compiler found; the portable path is used (several times slower on a CPU).")
            return False
        _notice("compiling native operators, once for this machine (about half a minute).")
        try:
            _compile(compiler, library)
        except (OSError, subprocess.SubprocessError) as error:
            _notice(f"native operators could not be compiled ({_first_line(error)}); the portable path is used.")
            return False
    try:
        torch.ops.load_library(str(library))
    except OSError as error:
        _notice(f"native operators could not be loaded ({_first_line(error)}); the portable path is used.")
        return False
    return True


def cache_directory() -> Path:
    """Returns the folder of compiled libraries."""
    if "NAS_MOREAU_CACHE" in os.environ:
        return Path(os.environ["NAS_MOREAU_CACHE"])
    home = os.environ.get("XDG_CACHE_HOME") or str(Path("~/.cache").expanduser())
    return Path(home) / "nas_moreau"


def library_path() -> Path:
    """Returns the path of the library for this machine, compiler and flags, whether it exists or not."""
    return cache_directory() / f"operators-{_key(find_compiler())}.so"


def find_compiler() -> str | None:
    """Returns the path of the C++ compiler, None if there is none."""
    candidates = [os.environ["CXX"]] if "CXX" in os.environ else ["c++", "g++", "clang++"]
    return next((path for path in map(shutil.which, candidates) if path), None)


def _flags() -> list[str]:
    return [*FLAGS, *os.environ.get("NAS_MOREAU_CXXFLAGS", "").split()]


def _key(compiler: str | None) -> str:
    """Returns a hash of everything that a compiled library depends on."""
    here = Path(__file__).parent
    parts = [str(compiler), torch.__version__, platform.python_version(), platform.platform(), _processor(), *_flags()]
    digest = hashlib.sha256("\n".join(parts).encode())
    for name in SOURCES:
        digest.update((here / name).read_bytes())
    return digest.hexdigest()[:20]


def _processor() -> str:
    """Returns what distinguishes instruction sets: a home folder may be shared by unequal machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())


def _compile(compiler: str, library: Path) -> None:
    """Builds in a separate folder and moves the library into place: processes that do so at once do not meet.

    One call of the compiler: torch's extension loader needs ninja, and its lock file blocks all processes
    indefinitely if one is killed while it builds.
    """
    source, torch_home = Path(__file__).parent / "operators.cpp", Path(torch.__file__).parent
    library.parent.mkdir(parents=True, exist_ok=True)
    threads = [] if sys.platform == "darwin" else ["-fopenmp"]
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"
    with tempfile.TemporaryDirectory(dir=library.parent, prefix="build-") as folder:
        built = Path(folder) / library.name
        command = [compiler, *_flags(), *threads, "-fPIC", "-shared", abi, f"-I{torch_home / 'include'}", str(source)]
        links = ["-o", str(built), f"-L{torch_home / 'lib'}", "-lc10", "-ltorch_cpu", "-ltorch"]
        _run([*command, *links])
        os.replace(built, library)


def _run(command: list[str]) -> None:
    """Runs the compiler; a line shows now and then that it is still at work."""
    begun = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while True:
            try:
                out, errors = process.communicate(timeout=SHOWN_SECONDS)
                break
            except subprocess.TimeoutExpired:
                _notice(f"still compiling native operators, {time.monotonic() - begun:.0f} s.")
            except BaseException:
                process.kill()
                raise
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, out, errors)


def _first_line(error: Exception) -> str:
    text = getattr(error, "stderr", None) or str(error)
    lines = [line for line in str(text).splitlines() if "error" in line.lower()] or str(text).splitlines() or [""]
    return lines[0][:200]
