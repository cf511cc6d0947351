#!/usr/bin/env bash
# From a fresh machine to a finished main job on the embedded images: environment, search, retraining, report.
set -eu
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
prepare ""
output=checkpoints/quickstart
echo "== Search and retrain on the embedded data set 'shapes' (about two minutes)" >&2
resume=()
[ -e "$output/config.yaml" ] && resume=(--resume)
.venv/bin/nas-moreau run --preset smoke --output "$output" "${resume[@]}"
cat <<TEXT

Done. Look at:   $output/report.html
For the commands here and above:
                 . .venv/bin/activate
Watch curves:    nas-moreau watch $output
Next, on CIFAR-10 and a GPU:
                 nas-moreau run --preset cifar10 --data cifar10 --download
or on a CPU, in half an hour to an hour:
                 nas-moreau run --preset cpu --data cifar10 --download
TEXT
