#!/usr/bin/env bash
# Trains a small run, proves it from its ledger, and rebuilds the model of an earlier round.
#
#   examples/audit.sh FOLDER        FOLDER is made; it gets runs/audited and model-5
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
folder=${1:?a folder for the results}
mkdir -p "$folder"
cd "$folder"

dandelion run --config "$here/first_run.toml" --name audited
dandelion ledger verify runs/audited
dandelion ledger replay runs/audited --round 5 --out model-5
