"""Clients of benchmarks/serving.py that do not wait for answers before they ask, which wrk cannot.

    python benchmarks/serving_client.py PORT RATE SECONDS BODIES

sends the lines of the file BODIES to POST /answer, so many a second at random times, as independent users do (a Poisson
process), however long the answers take. Each minute it prints a JSON object: `seconds` of the interval, questions
`asked`, `latencies` of those answered, from the time at which the question was due, `errors` by kind, questions
`in_flight`, and the `cpu_seconds` that it took itself. It uses as many connections as there are questions in flight.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections import Counter
from itertools import cycle
from pathlib import Path
from typing import Self

INTERVAL = 60.0
IDLE_SECONDS = 20.0
"""A server closes connections that are idle for longer."""


def main() -> None:
    port, rate, seconds, path = int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3]), Path(sys.argv[4])
    asyncio.run(Arrivals(port, rate, path.read_bytes().splitlines()).run(seconds))


class Connection:
    """A connection of HTTP/1.1 that is kept open."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._used = time.perf_counter()

    @classmethod
    async def open(cls, port: int) -> Self:
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    @property
    def is_usable(self) -> bool:
        return not self._reader.at_eof() and time.perf_counter() - self._used < IDLE_SECONDS

    async def answer(self, body: bytes) -> int:
        """The status of the response to POST /answer. Raises OSError or EOFError where there is none."""
        self._writer.write(b"POST /answer HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        head = await self._reader.readuntil(b"\r\n\r\n")
        fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:-2])
        await self._reader.readexactly(int(fields[b"content-length"]))
        self._used = time.perf_counter()
        return int(head.split(b" ", 2)[1])

    def close(self) -> None:
        self._writer.close()


class Arrivals:
    """Questions that come at random times."""

    def __init__(self, port: int, rate: float, bodies: list[bytes]) -> None:
        self._port, self._rate, self._bodies = port, rate, cycle(bodies)
        self._random = random.Random(0)
        self._idle: list[Connection] = []
        self._in_flight: set[asyncio.Task[None]] = set()
        self._begin_interval()

    async def run(self, seconds: float) -> None:
        """Ask for so many seconds, then wait for the last answers."""
        due = time.perf_counter()
        end, report = due + seconds, due + INTERVAL
        while (due := due + self._random.expovariate(self._rate)) < end:
            while due > report:
                await _until(report)
                self._report()
                report += INTERVAL
            await _until(due)
            task = asyncio.create_task(self._ask(next(self._bodies), due))
            self._asked += 1
            self._in_flight.add(task)
            task.add_done_callback(self._in_flight.discard)
        await _until(end)
        await asyncio.gather(*self._in_flight)
        self._report()

    async def _ask(self, body: bytes, due: float) -> None:
        try:
            connection = self._take() or await Connection.open(self._port)
            status = await connection.answer(body)
        except (OSError, EOFError) as error:
            self._errors[type(error).__name__] += 1
            return
        self._idle.append(connection)
        if status == 200:
            self._latencies.append(time.perf_counter() - due)
        else:
            self._errors[str(status)] += 1

    def _take(self) -> Connection | None:
        """The connection that was used last, if one is idle."""
        if self._idle and not self._idle[-1].is_usable:
            for connection in self._idle:  # the others are idle for longer
                connection.close()
            self._idle.clear()
        return self._idle.pop() if self._idle else None

    def _begin_interval(self) -> None:
        self._asked, self._latencies, self._errors = 0, list[float](), Counter[str]()
        self._began, self._cpu_began = time.perf_counter(), time.process_time()

    def _report(self) -> None:
        document = {
            "seconds": time.perf_counter() - self._began,
            "asked": self._asked,
            "latencies": [round(latency, 5) for latency in self._latencies],
            "errors": dict(self._errors),
            "in_flight": len(self._in_flight),
            "cpu_seconds": time.process_time() - self._cpu_began,
        }
        print(json.dumps(document), flush=True)
        self._begin_interval()


async def _until(moment: float) -> None:
    await asyncio.sleep(max(0.0, moment - time.perf_counter()))


if __name__ == "__main__":
    main()
