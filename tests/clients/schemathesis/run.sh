#!/usr/bin/env bash
# Schemathesis reads /openapi.json and makes requests from it, right and wrong ones, to find answers that the
# document does not allow. That every request of the document's shape is accepted is not checked: some rules join
# fields (stream_options needs stream, min_tokens is at most max_tokens), which no schema here says. Needs python3 and,
# once, the Python package registry.
#
#     tests/clients/schemathesis/run.sh target/release/quire [options of schemathesis]
set -euo pipefail

binary=$(realpath "${1:?the path of the quire binary}")
shift
here=$(cd "$(dirname "$0")" && pwd)
venv="$here/../../../target/schemathesis-venv"

if ! cmp -s "$here/requirements.txt" "$venv/installed.txt"; then
    rm -rf "$venv"
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check --requirement "$here/requirements.txt"
    cp "$here/requirements.txt" "$venv/installed.txt"
fi
export PYTHONDONTWRITEBYTECODE=1 PYTHONPATH="$here/.."
cd "$here"
exec "$venv/bin/python" "$here/../ecosystem/with_server.py" "$binary" \
    sh -c '"$0" run "$QUIRE_URL/openapi.json" "$@"' "$venv/bin/schemathesis" \
    --seed 1 --max-examples 8 --max-time 60 --suppress-health-check all --continue-on-failure \
    --exclude-checks positive_data_acceptance "$@"
