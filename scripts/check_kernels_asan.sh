#!/bin/bash
# Builds the native kernels with gcc's address sanitizer and runs their tests under it; needs gcc with libasan.
#   bash scripts/check_kernels_asan.sh [PYTEST ARGUMENTS]
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python}
export NAS_MOREAU_CACHE=${NAS_MOREAU_CACHE:-$(mktemp -d)}
export NAS_MOREAU_CXXFLAGS="-fsanitize=address -fno-omit-frame-pointer -g1 ${NAS_MOREAU_CXXFLAGS:-}"
export CXX=${CXX:-g++} PYTHONPATH=.${PYTHONPATH:+:$PYTHONPATH}
# compiled first: the compiler itself is not to run under the sanitizer
"$python" - <<'PYTHON'
from nas_moreau.kernels import build

compiler = build.find_compiler()
library = build.cache_directory() / f"operators-{build._key(compiler)}.so"
if not library.exists():
    build._compile(compiler, library)
PYTHON
# Python and torch leak on purpose at exit; the C++ library has to be there before the sanitizer looks for its functions
export ASAN_OPTIONS=detect_leaks=0:halt_on_error=1
LD_PRELOAD="$("$CXX" -print-file-name=libasan.so) $("$CXX" -print-file-name=libstdc++.so)" \
    "$python" -m pytest -q -p no:cacheprovider tests/kernels/test_native_cell.py "$@"
