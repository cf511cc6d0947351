#!/usr/bin/env bash
# From a fresh machine to passed tests; further words go to pytest: bash scripts/test.sh -k bilevel
# Workers share the cores, at most four: each imports torch.
# With COVER=1 the lines that run are counted (`python -m coverage report`; needs the extra "check").
set -eu
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
prepare "$([ -n "${COVER:-}" ] && echo check || echo test)"
echo "== Tests" >&2
# Folders of tests in memory, where there is room: they are synced to the disk many thousand times.
free=$(df -k /dev/shm 2>/dev/null | awk 'END { print $4 }')
folder=
if [ "${free:-0}" -gt 6000000 ]; then
  folder=$(mktemp -d /dev/shm/nas_moreau_tests.XXXXXX)
  trap 'rm -rf "$folder"' EXIT
fi
.venv/bin/python -m pytest -n auto --maxprocesses 4 --dist loadfile ${folder:+--basetemp "$folder"} \
  ${COVER:+--cov --cov-report=} "$@"
