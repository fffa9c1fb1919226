#!/usr/bin/env bash
# Drives a release binary with clients that know nothing of Quire: the official openai, anthropic and ollama
# packages, a gRPC client made from server reflection alone, and a headless Chromium on the page at / (left out, and
# said so, where there is no npm). Needs python3 and, once, the Python package registry; the packages, pinned in
# requirements.txt, go into a virtual environment under target/. Schemathesis, which looks for a minute and finds
# something else on every machine, is run by hand: schemathesis/run.sh.
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
"$venv/bin/python" "$here/ollama_client.py" "$binary"
"$venv/bin/python" "$here/reflection_client.py" "$binary"
"$here/page/run.sh" "$binary"
