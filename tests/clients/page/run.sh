#!/usr/bin/env bash
# The page at / in a headless Chromium, with and without a key. Needs node, npm and its registry; the browser comes
# with an npm package, or is the one that CHROMIUM names.
#
#     tests/clients/page/run.sh target/release/quire
set -euo pipefail

binary=$(realpath "${1:?the path of the quire binary}")
here=$(cd "$(dirname "$0")" && pwd)
folder="$here/../../../target/page-client"

if ! command -v npm >/dev/null; then
    echo "SKIPPED: the page was not looked at, because there is no npm to install a browser with"
    exit 0
fi
if ! cmp -s "$here/package.json" "$folder/package.json"; then
    rm -rf "$folder"
    mkdir -p "$folder"
    cp "$here/package.json" "$folder/"
    npm install --silent --no-audit --no-fund --prefix "$folder"
fi
# Modules are looked for beside the script.
cp "$here/page.mjs" "$folder/"
export PYTHONDONTWRITEBYTECODE=1 PYTHONPATH="$here/.."
with_server="$here/../ecosystem/with_server.py"
python3 "$with_server" "$binary" node "$folder/page.mjs"
VLLM_API_KEY=secret QUIRE_KEY=secret python3 "$with_server" "$binary" node "$folder/page.mjs"
