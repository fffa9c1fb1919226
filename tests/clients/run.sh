#!/usr/bin/env bash
# Drives a release binary with clients that know nothing of Quire: the official openai and anthropic packages,
# and a gRPC client made from server reflection alone. Needs python3 and, once, the Python package registry;
# the packages, pinned in requirements.txt, go into a virtual environment under target/.
#
#     tests/clients/run.sh target/release/quire
set -euo pipefail

binary=$(realpath "${1:?the path of the quire binary}")
here=$(cd "$(dirname "$0")" && pwd)
venv="$here/../../target/clients-venv"

if ! cmp -s "$here/requirements.txt" "$venv/installed.txt"; then
    rm -rf "$venv"
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check --requirement "$here/requirements.txt"
    cp "$here/requirements.txt" "$venv/installed.txt"
fi
export PYTHONDONTWRITEBYTECODE=1
"$venv/bin/python" "$here/openai_client.py" "$binary"
"$venv/bin/python" "$here/responses_client.py" "$binary"
"$venv/bin/python" "$here/anthropic_client.py" "$binary"
"$venv/bin/python" "$here/reflection_client.py" "$binary"
