"""The clients of benchmarks/serving.py, in a process of their own: asks a server, and prints how long each answer took.

    python benchmarks/serving_client.py PORT CLIENTS < questions.json

Each client has one connection and asks its next question when it has the answer to the last. Prints a JSON object:
`seconds` of the run, `latencies` of each request, and `cpu_seconds` that these clients took themselves.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Iterator

Latencies = list[float]


def main() -> None:
    port, clients = map(int, sys.argv[1:])
    bodies = [json.dumps(question).encode() for question in json.load(sys.stdin)]
    started, cpu_started = time.perf_counter(), time.process_time()
    latencies = asyncio.run(ask_all(port, clients, bodies))
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    json.dump({"seconds": seconds, "latencies": latencies, "cpu_seconds": cpu_seconds}, sys.stdout)


async def ask_all(port: int, clients: int, bodies: list[bytes]) -> Latencies:
    waiting = iter(bodies)
    results = await asyncio.gather(*(client(port, waiting) for _ in range(clients)))
    return [latency for latencies in results for latency in latencies]


async def client(port: int, bodies: Iterator[bytes]) -> Latencies:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    latencies = []
    for body in bodies:
        started = time.perf_counter()
        writer.write(b"POST /answer HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        head = await reader.readuntil(b"\r\n\r\n")
        fields = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:-2])
        await reader.readexactly(int(fields[b"content-length"]))
        assert head.startswith(b"HTTP/1.1 200 "), head
        latencies.append(time.perf_counter() - started)
    writer.close()
    return latencies


if __name__ == "__main__":
    main()
