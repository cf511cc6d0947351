#!/usr/bin/env bash
# Builds the wheel, installs it into clean environments of its own and runs the preset `smoke` from another folder:
#     bash scripts/check_wheel.sh                                      # oldest torch and newest, this Python
#     bash scripts/check_wheel.sh "torch==2.6.*" "timm==1.0.3"         # one environment with these versions
# PYTHON names another interpreter. An environment takes some GB under TMPDIR and is removed at the end.
set -eu
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
git ls-files -z --cached --others --exclude-standard | xargs -0 cp --parents -t "$place" # setuptools leaves its traces in a copy, not here
"$python" -m pip wheel --quiet --no-deps --wheel-dir "$place/wheel" "$place"

check() { # check REQUIREMENT...: an environment with the wheel and these, and a run in it
  echo "== $* on $("$python" --version)"
  rm -rf "$place/environment" "$place/elsewhere"
  "$python" -m venv "$place/environment"
  "$place/environment/bin/python" -m pip install --quiet --progress-bar off "$place"/wheel/*.whl "$@"
  mkdir "$place/elsewhere"
  (
    cd "$place/elsewhere"
    "$place/environment/bin/python" -m pip list --format freeze | grep -Ei '^(nas.moreau|torch|torchvision|timm|numpy)=='
    PYTHONPATH='' PYTHONWARNINGS=default "$place/environment/bin/nas-moreau" run --preset smoke --output run 2>err || {
      tail -n 40 err
      echo "== FAILED: $*"
      exit 1
    }
    grep -iE 'warning' err | sort | uniq -c || true
    test -s run/report.html && test -s run/retrain/genotype.json
  )
  echo "== passed: $*"
}

if [ $# -gt 0 ]; then
  check "$@"
else
  check "torch==2.6.*"
  check "torch"
fi
