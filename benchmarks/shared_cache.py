"""Build targets on one machine and then on another over an S3 server: seconds, requests and bytes of each.

    pip install s3fs 'moto[server]'
    python benchmarks/shared_cache.py --checkpoint CHECKPOINT --data dev-v1.1.json --samples 500

"A machine" is an empty cache and an empty output folder on this one; the server runs here, too. The first build makes
all, the second is given the filled remote cache and must make nothing; its results are signed, so that it does not
measure either. A third build goes to the local cache of the second, over the same remote cache. Requests and bytes are
those that the server counts, headers left out. s3fs asks for a large object once to learn its size, hangs up, and then
fetches it in parts.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qabuild.qa.sample import HELDOUT
from qabuild.system import machine, packages

BACKENDS = {
    "eager": 'name = "eager"\n[runtime]\ndtype = "fp32"',
    "onnxruntime": 'name = "onnxruntime"\n[runtime]\ndtype = "int8"',
    "openvino": 'name = "openvino"\n[runtime]\ndtype = "fp32"',
}
TARGET = """
[checkpoint]
model = {model}
[backend]
{backend}
device = "cpu"
[verify]
dataset = {data}
samples = {samples}
[verify.gates]
min_agreement = 0.5
max_f1_drop = 5.0
"""


@dataclass
class Traffic:
    """What the server has seen."""

    requests: Counter[str] = field(default_factory=Counter)
    received: int = 0
    sent: int = 0


def main() -> None:
    arguments = parse()
    with tempfile.TemporaryDirectory(prefix="qabuild-shared-cache-") as name, server() as (url, traffic):
        folder = Path(name)
        targets = [write_target(folder, backend, arguments) for backend in arguments.backends]
        environment = {**os.environ, **credentials(url)}
        run(environment, "keygen", str(folder / "cache.key"))
        create_bucket(url)
        print(f"{machine.cpu()}, {machine.cores()} cores; {packages.versions(['s3fs', 'moto'])}", flush=True)
        made = {}
        for title, cache in (("first machine", "first"), ("second machine", "second"), ("second, again", "second")):
            before = Traffic(traffic.requests.copy(), traffic.received, traffic.sent)
            started = time.monotonic()
            # A new output folder: what lies there would be found to be built already, and nothing would be fetched.
            output = run(
                {**environment, "QABUILD_CACHE": str(folder / cache), "XDG_STATE_HOME": str(folder / cache / "state")},
                *("build", *targets, "--output", str(folder / f"{title} artifacts"), "--json"),
                *("--remote-cache-key", str(folder / "cache.key")),
            )
            seconds = time.monotonic() - started
            requests = traffic.requests - before.requests
            made[title] = [line for line in output.stderr.splitlines() if ": " in line]
            print(
                f"{title:16} {seconds:7.1f} s  {requests.total():4} requests {dict(requests)}"
                f"  {(traffic.received - before.received) / 1e6:8.2f} MB put"
                f"  {(traffic.sent - before.sent) / 1e6:8.2f} MB fetched"
                f"  manifests {manifests(output.stdout)}",
                flush=True,
            )
        for title, lines in made.items():
            print(f"\n{title}:", *lines, sep="\n  ")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", default="sample")
    parser.add_argument("--data", default=str(HELDOUT), help="questions in SQuAD's JSON layout")
    parser.add_argument("--samples", type=int, default=100, help="questions of each verification")
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=list(BACKENDS))
    return parser.parse_args()


def write_target(folder: Path, backend: str, arguments: argparse.Namespace) -> str:
    path = folder / f"{backend}.toml"
    source = arguments.checkpoint if arguments.checkpoint == "sample" else str(Path(arguments.checkpoint).resolve())
    values = {"model": json.dumps(source), "data": json.dumps(str(Path(arguments.data).resolve()))}
    path.write_text(TARGET.format(backend=BACKENDS[backend], samples=arguments.samples, **values), encoding="utf-8")
    return str(path)


def run(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from qabuild.cli import main; main()", *arguments]
    completed = subprocess.run(command, env=environment, capture_output=True, text=True)
    if completed.returncode:
        sys.exit(f"{' '.join(arguments)}: status {completed.returncode}\n{completed.stderr}")
    return completed


def manifests(document: str) -> list[str]:
    return [each["manifest"][:8] for each in json.loads(document)]


# --- the server -----------------------------------------------------------------------------------------------------


@contextmanager
def server() -> Iterator[tuple[str, Traffic]]:
    """moto's S3 server on a free port, and what it has seen."""
    import logging
    import threading

    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    traffic = Traffic()
    app = DomainDispatcherApplication(create_backend_app)

    def counted(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterator[bytes]:
        traffic.requests[environ["REQUEST_METHOD"]] += 1
        traffic.received += int(environ.get("CONTENT_LENGTH") or 0)
        for chunk in app(environ, start_response):
            yield chunk
            traffic.sent += len(chunk)  # not reached if the client hangs up

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    httpd = make_server("127.0.0.1", 0, counted, threaded=True)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{httpd.port}", traffic
    finally:
        httpd.shutdown()


def credentials(url: str) -> dict[str, str]:
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "QABUILD_REMOTE_CACHE": "s3://team/qabuild",
    }


def create_bucket(url: str) -> None:
    import urllib.request

    urllib.request.urlopen(urllib.request.Request(f"{url}/team", method="PUT")).close()


if __name__ == "__main__":
    main()
