#!/usr/bin/env bash
# From a fresh machine to passed tests; further words go to pytest: bash scripts/test.sh -k bilevel
set -eu
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
prepare test
echo "== Tests" >&2
exec .venv/bin/python -m pytest "$@"
