#!/usr/bin/env bash
# Runs the ecosystem's clients against a release binary; see README.md beside this file.
#
#     tests/clients/ecosystem/run.sh target/release/quire [agents|frameworks|guidellm|inference_perf|instructor|litellm|load|node|smg]...
set -euo pipefail

binary=$(realpath "${1:?the path of the quire binary}")
shift
here=$(cd "$(dirname "$0")" && pwd)
target="$here/../../../target/ecosystem"
export PYTHONDONTWRITEBYTECODE=1 PYTHONPATH="$here/.."
mkdir -p "$target"

# The newest Python there is: inference-perf wants 3.12.
python() {
    for name in python3.14 python3.13 python3.12 python3; do
        if "$name" -c "" 2>/dev/null; then
            echo "$name"
            return
        fi
    done
}

# A virtual environment with what NAME.txt lists.
python_with() {
    local venv="$target/$1"
    if ! cmp -s "$here/$1.txt" "$venv/installed.txt"; then
        rm -rf "$venv"
        "$(python)" -m venv "$venv"
        "$venv/bin/pip" install --quiet --disable-pip-version-check --requirement "$here/$1.txt"
        cp "$here/$1.txt" "$venv/installed.txt"
    fi
    PATH="$venv/bin:$PATH" "$venv/bin/python" "$here/$1_client.py" "$binary"
}

# A folder with what FILE, a package.json, lists.
npm_with() {
    local folder="$target/$1"
    if ! cmp -s "$2" "$folder/package.json"; then
        rm -rf "$folder"
        mkdir -p "$folder"
        cp "$2" "$folder/package.json"
        npm install --silent --no-audit --no-fund --prefix "$folder"
    fi
}

node_clients() {
    local folder="$target/node"
    npm_with node "$here/package.json"
    # Modules are looked for beside the script.
    cp "$here/node_client.mjs" "$folder/"
    python3 "$here/with_server.py" "$binary" node "$folder/node_client.mjs"
}

agents() {
    npm_with agents "$here/agents.json"
    python3 "$here/agents_client.py" "$binary" "$target/agents/node_modules/.bin"
}

for name in "${@:-agents frameworks guidellm inference_perf instructor litellm load node smg}"; do
    for client in $name; do
        echo "== $client"
        case $client in
            agents) agents ;;
            node) node_clients ;;
            *) python_with "$client" ;;
        esac
    done
done
