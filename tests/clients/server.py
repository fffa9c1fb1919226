"""A server process for the clients' checks, and the loop that runs them."""

import contextlib
import re
import subprocess
import sys
import time
import traceback

READY = re.compile(r"Quire serves (\S+) on http://(\S+) \(OpenAI\) and (\S+) \(gRPC\)")


class Server:
    """What a ready server said about itself."""

    def __init__(self, process, name, http, grpc):
        self.process, self.name, self.http, self.grpc = process, name, http, grpc


@contextlib.contextmanager
def serve(*flags):
    """Runs `quire serve` with the demo model on ports of the system's choice."""
    command = [sys.argv[1], "serve", "--host", "127.0.0.1", "--port", "0", "--grpc-port", "0", *flags]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline()
        ready = READY.fullmatch(line.strip())
        assert ready, f"no ready line: {line!r}"
        yield Server(process, *ready.groups())
    finally:
        process.kill()
        process.wait()


def run_checks(module):
    """Calls every function of the module whose name begins with `check_`; ends the program with a verdict."""
    failed = 0
    for name, check in list(vars(module).items()):
        if not name.startswith("check_"):
            continue
        start = time.monotonic()
        try:
            check()
            verdict = "ok"
        except Exception:  # the next checks are worth running all the same
            traceback.print_exc()
            verdict, failed = "FAILED", failed + 1
        print(f"{name} ... {verdict} ({time.monotonic() - start:.1f} s)", flush=True)
    sys.exit(1 if failed else 0)


def raises(kind, call):
    """Calls and gives the exception, which must be exactly of this class."""
    try:
        call()
    except kind as error:
        assert type(error) is kind, f"{type(error).__name__} instead of {kind.__name__}: {error}"
        return error
    raise AssertionError(f"no {kind.__name__}")
