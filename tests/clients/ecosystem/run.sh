#!/usr/bin/env bash
# Runs the ecosystem's clients against a release binary; see README.md beside this file.
#
#     tests/clients/ecosystem/run.sh target/release/quire [frameworks|instructor|litellm|node|load|smg|sentences]...
set -euo pipefail

binary=$(realpath "${1:?the path of the quire binary}")
shift
here=$(cd "$(dirname "$0")" && pwd)
target="$here/../../../target/ecosystem"
export PYTHONDONTWRITEBYTECODE=1 PYTHONPATH="$here/.."
mkdir -p "$target"

# A virtual environment with what NAME.txt lists.
python_with() {
    local venv="$target/$1"
    if ! cmp -s "$here/$1.txt" "$venv/installed.txt"; then
        rm -rf "$venv"
        python3 -m venv "$venv"
        "$venv/bin/pip" install --quiet --disable-pip-version-check --requirement "$here/$1.txt"
        cp "$here/$1.txt" "$venv/installed.txt"
    fi
    PATH="$venv/bin:$PATH" "$venv/bin/python" "$here/$1_client.py" "$binary"
}

node_clients() {
    local folder="$target/node"
    if ! cmp -s "$here/package.json" "$folder/package.json"; then
        rm -rf "$folder"
        mkdir -p "$folder"
        cp "$here/package.json" "$folder/"
        npm install --silent --no-audit --no-fund --prefix "$folder"
    fi
    # Modules are looked for beside the script.
    cp "$here/node_client.mjs" "$folder/"
    python3 "$here/with_server.py" "$binary" node "$folder/node_client.mjs"
}

for name in "${@:-frameworks instructor litellm node load smg}"; do
    for client in $name; do
        echo "== $client"
        case $client in
            node) node_clients ;;
            *) python_with "$client" ;;
        esac
    done
done
