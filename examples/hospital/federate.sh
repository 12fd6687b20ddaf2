#!/usr/bin/env bash
# The same over the wire: a server and two sites, each a program of its own with files of its own, on
# this machine's loopback with TLS and registered keys: federate.sh FOLDER [PORT]
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
folder=${1:-hospital-run}
port=${2:-8000}
mkdir -p "$folder"
cd "$folder"

python "$here/make_notes.py" notes
"$here/../../deploy/certificates.sh" certificates 127.0.0.1 > certificates.log

# At the server.
dandelion server up --certificates certificates --port "$port" --home server > server.log 2>&1 &
programs=($!)
trap 'kill "${programs[@]}" 2> /dev/null || true; wait' EXIT
for _ in $(seq 90); do
    dandelion server status --home server > /dev/null 2>&1 && break
    kill -0 "${programs[0]}"        # if the server has ended, so does this script
    sleep 1
done

# At each site: a key, whose public half the server gets, and the site's own folder of notes.
for site in north south; do
    mkdir -p "$site"
    rm -f "$site/node.key" "$site/node.key.pub"
    ssh-keygen -q -t ecdsa -b 384 -N '' -f "$site/node.key"
    dandelion server register "$site/node.key.pub" --home server
    dandelion client join "127.0.0.1:$port" --ca certificates/ca.crt --key "$site/node.key" \
        --home "$site" --set "site=$site" --set "data=$PWD/notes/$site" > "$site.log" 2>&1 &
    programs+=($!)
done

# At the server again.
dandelion server run --home server --config "$here/hospital.toml" --name federated \
    --set "dataset=$PWD/notes/held-out"
dandelion ledger verify server/runs/federated
