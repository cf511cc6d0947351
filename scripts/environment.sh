# Sourced by the other scripts: makes .venv beside the sources with this package and what is asked for, once.
# PYTHON names another interpreter (3.10 or newer).
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
python=${PYTHON:-python3}

prepare() { # prepare EXTRAS: installs the package with these extras unless that was done for the same pyproject.toml
  local stamp=.venv/installed-${1:-plain} want
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
    echo "Python 3.10 or newer is needed; set PYTHON=/path/to/python3." >&2
    exit 2
  }
  want=$(cksum pyproject.toml)
  if [ -x .venv/bin/python ] && [ "$(cat "$stamp" 2>/dev/null)" = "$want" ]; then
    return
  fi
  echo "== Environment: .venv (the first time this downloads torch, some minutes)" >&2
  [ -x .venv/bin/python ] || "$python" -m venv .venv || exit 1
  # --no-compile: Python compiles what is imported, at its first import; all files would take a minute
  .venv/bin/python -m pip install --quiet --progress-bar on --no-compile --editable ".${1:+[$1]}" || {
    echo "The installation failed; the lines above say why. Run the same command again to go on." >&2
    exit 1
  }
  echo "$want" >"$stamp"
}
