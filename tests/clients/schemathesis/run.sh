#!/usr/bin/env bash
# Schemathesis reads /openapi.json and makes requests from it, right and wrong ones, to find answers that the
# document does not allow: errors of the server, statuses, types and bodies that it does not name. What is accepted
# is not checked here: some rules join fields (stream_options needs stream), which no schema says, and some readers
# take what is a little wrong, as vLLM's do. Without --exclude-checks they are shown. Needs python3 and, once, the Python
# package registry.
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
    --exclude-checks positive_data_acceptance,negative_data_rejection "$@"
