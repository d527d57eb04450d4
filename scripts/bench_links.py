"""Time the link checker on a local server that paces its clients, without and with cache.

Expect (2 cores): python scripts/bench_links.py prints a first run of about PACE x requests and a
re-run from the cache well below 5 s that asks nobody.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Annotated

import typer

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from kb.fetch import Endpoints  # noqa: E402
from kb.http import Cache, Client, Policy  # noqa: E402
from kb.links import Kind, Link, Memory, check  # noqa: E402


class Paced(BaseHTTPRequestHandler):
    """Mostly well; every 20th page moved, every 25th gone, every 50th forbidden."""

    turn = threading.Lock()
    seconds = 0.0
    asked = 0

    def log_message(self, format: str, *args: object) -> None:
        """Be quiet."""

    def do_HEAD(self) -> None:
        with Paced.turn:
            time.sleep(Paced.seconds)
            Paced.asked += 1
        page = self.path.rpartition("/")[2]
        number = int(page) if page.isdecimal() else 1
        status = next((s for n, s in ((50, 403), (25, 404), (20, 301)) if number % n == 0), 200)
        self.send_response(status)
        if status == 301:
            self.send_header("Location", f"/new/{number + 1}")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD


def run(wanted: list[Link], policy: Policy, folder: Path) -> tuple[float, int]:
    """Seconds and requests of one run."""
    started = time.perf_counter()
    with Client(policy, cache=Cache(folder / "http.sqlite")) as client:
        memory = Memory(folder / "links.jsonl")
        check(wanted, client, Endpoints(), memory)
        memory.save()
        return time.perf_counter() - started, client.requests


def main(
    count: Annotated[int, typer.Option(min=1, help="Links.")] = 1000,
    pace: Annotated[float, typer.Option(min=0.0, help="Seconds the server takes a turn.")] = 0.01,
    repeats: Annotated[int, typer.Option(min=1, help="Runs from the cache.")] = 5,
) -> None:
    """Print one JSON object."""
    Paced.seconds = pace
    server = ThreadingHTTPServer(("127.0.0.1", 0), Paced)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    host = f"127.0.0.1:{server.server_address[1]}"
    wanted = [Link(Kind.WEB, f"http://{host}/page/{i}") for i in range(1, count + 1)]
    policy = Policy(pace=pace, exempt=frozenset({host}))
    with tempfile.TemporaryDirectory() as folder:
        first, requests = run(wanted, policy, Path(folder))
        again = [run(wanted, policy, Path(folder)) for _ in range(repeats)]
    server.shutdown()
    server.server_close()
    found = {
        "links": count,
        "server_pace_s": pace,
        "first_run_s": round(first, 3),
        "first_run_requests": requests,
        "cached_runs_s": [round(seconds, 3) for seconds, _ in again],
        "cached_runs_requests": sum(asked for _, asked in again),
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
    }
    typer.echo(json.dumps(found, indent=2))


if __name__ == "__main__":
    typer.run(main)
