#!/usr/bin/env bash
# Runs one configuration from nothing to its report: data set, training, evaluation.
# usage: scripts/experiment.sh NAME, for configs/NAME.yaml; everything lands in runs/NAME.
# A finished data set or training is kept, a stopped one goes on; the evaluation always runs.
set -euo pipefail
cd "$(dirname "$0")/.."

name=${1:?usage: scripts/experiment.sh NAME (a file configs/NAME.yaml)}
config=configs/$name.yaml
run=runs/$name
[ -f "$config" ] || { echo "experiment: $config: no such file" >&2; exit 2; }

headline() {
    printf '\n== %s (%d min %02d s) ==\n' "$1" $((SECONDS / 60)) $((SECONDS % 60))
}

headline "1/3 data set"
python -m ray_jobs.make_dataset --config "$config"

headline "2/3 training"
if [ -e "$run/config.yaml" ]; then
    echo "going on with $run (delete it to start over)"
    python -m ray_jobs.train --resume "$name"
else
    python -m ray_jobs.train --config "$config" --run-id "$name"
fi

headline "3/3 evaluation"
python -m ray_jobs.evaluate --run "$name"
headline "done: $run/report.html"
