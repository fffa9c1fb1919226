"""Runs a command while a server is there: `with_server.py QUIRE_BINARY COMMAND...`. The command gets the server's
address as QUIRE_URL."""

import os
import subprocess
import sys

from server import serve

with serve() as server:
    environment = {**os.environ, "QUIRE_URL": f"http://{server.http}"}
    sys.exit(subprocess.run(sys.argv[2:], env=environment).returncode)
