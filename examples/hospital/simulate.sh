#!/usr/bin/env bash
# Trains the two hospitals of this folder in one process, as a rehearsal: simulate.sh FOLDER
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
folder=${1:-hospital-run}
mkdir -p "$folder"
cd "$folder"

python "$here/make_notes.py" notes
mkdir -p sites
cp -r notes/north notes/south sites/
dandelion run --config "$here/hospital.toml" --set dataset=sites --name rehearsal
dandelion ledger verify runs/rehearsal
