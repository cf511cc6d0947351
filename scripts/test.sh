#!/usr/bin/env bash
# From a fresh machine to passed tests; further words go to pytest: bash scripts/test.sh -k bilevel
# Workers share the cores, at most four: each imports torch.
# With COVER=1 the lines that run are counted (`python -m coverage report`; needs the extra "check").
set -eu
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
prepare "$([ -n "${COVER:-}" ] && echo check || echo test)"
echo "== Tests" >&2
exec .venv/bin/python -m pytest -n auto --maxprocesses 4 --dist loadfile ${COVER:+--cov --cov-report=} "$@"
