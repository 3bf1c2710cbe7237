"""The gateway under a crowd while nodes come and go: `make soak-serve`.

Real processes: one node that stays, others that are killed or asked to leave and come back, `shoal serve` in front, and
clients that stream, ask whole, or leave in mid-answer. Every request must end complete or with a typed error, and the
gateway's memory stay flat. Prints one JSON object. Nothing here is a speed: the machine does other things too.
"""

import argparse
import asyncio
import json
import random
import re
import statistics
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from multiprocessing.context import ForkServerContext
from typing import Any

import httpx2
import psutil

from shoal.simulations.demo_model import MODEL_DIRECTORY
from shoal.simulations.fork_server import start_fork_server
from shoal.simulations.local import LocalSwarmSettings, local_swarm

NUM_EXPERTS = 32
"""Of the demonstration model's layers."""

STAYING, COMING_AND_GOING = "0-15", "0-31"
"""Whoever comes and goes holds everything; when all of them are away there is a coverage gap, as in life."""

LIFE_S, ABSENCE_S = (10.0, 30.0), (1.0, 5.0)
"""How long a node stays and stays away."""

WARM_UP_SHARE = 0.2
"""Of the run, before memory counts: allocators and caches fill."""

LEAVES = 0.1
"""Share of requests whose client goes away."""

TIMEOUT_S = 120.0
"""Of one request; longer is lost."""


@dataclass
class Report:
    """What happened."""

    outcomes: Counter[str] = field(default_factory=Counter)
    """complete, left, `error NAME` (typed: in a response or an event), `LOST …`."""
    num_tokens: int = 0
    deaths: Counter[str] = field(default_factory=Counter)
    memory_mb: list[tuple[float, float]] = field(default_factory=list)
    """(seconds since the start, resident size of the gateway)."""

    def as_json(self, seconds: float) -> dict[str, object]:
        """The figures: memory as medians of the first and the last quarter after warming up."""
        counted = [size for at, size in self.memory_mb if at >= seconds * WARM_UP_SHARE]
        quarter = max(1, len(counted) // 4)
        first, last = statistics.median(counted[:quarter]), statistics.median(counted[-quarter:])
        lost = sum(count for name, count in self.outcomes.items() if name.startswith("LOST"))
        return {
            "seconds": round(seconds), "requests": self.outcomes.total(), "lost": lost, "outcomes": dict(self.outcomes),
            "streamed_chunks": self.num_tokens, "nodes": dict(self.deaths), "memory_mb_first_quarter": round(first, 1),
            "memory_mb_last_quarter": round(last, 1), "memory_mb_max": round(max(counted), 1),
        }  # fmt: skip


async def soak(context: ForkServerContext, minutes: float, num_clients: int, seed: int) -> dict[str, object]:
    """Run it all for so many minutes."""
    entropy, report, began = random.Random(seed), Report(), time.monotonic()
    settings = LocalSwarmSettings(MODEL_DIRECTORY, num_nodes=1, replicas=1, experts=STAYING)
    async with local_swarm(context, settings, NUM_EXPERTS) as (first,):
        others = replace(settings, experts=COMING_AND_GOING, join=first.info.join)
        churning = [asyncio.create_task(_come_and_go(context, others, entropy, report)) for _ in range(3)]
        async with _gateway(first.info.invite) as (url, process):
            deadline = time.monotonic() + minutes * 60
            began = time.monotonic()
            watching = asyncio.create_task(_watch(process, report, began))
            async with asyncio.TaskGroup() as group:
                for _ in range(num_clients):
                    group.create_task(_client(url, random.Random(entropy.random()), report, deadline))
            seconds = time.monotonic() - began
        for task in (watching, *churning):
            task.cancel()
        await asyncio.wait({watching, *churning})
    return report.as_json(seconds)


async def _come_and_go(
    context: ForkServerContext, settings: LocalSwarmSettings, entropy: random.Random, report: Report
) -> None:
    while True:
        async with local_swarm(context, settings, NUM_EXPERTS) as (node,):
            report.deaths["started"] += 1
            await asyncio.sleep(entropy.uniform(*LIFE_S))
            is_killed = entropy.random() < 0.5
            report.deaths["killed" if is_killed else "asked to leave"] += 1
            if is_killed:
                node.kill()
        await asyncio.sleep(entropy.uniform(*ABSENCE_S))


@asynccontextmanager
async def _gateway(invite: str) -> AsyncIterator[tuple[str, psutil.Process]]:
    """`shoal serve`; ready, because the staying node alone does not hold everything."""
    command = [sys.executable, "-m", "shoal.cli", "serve", "--port", "0", "--join", invite]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    try:
        url = await _url(process)
        async with httpx2.AsyncClient(base_url=url) as client:
            while (await client.get("/ready")).status_code != 200:  # noqa: ASYNC110  # another process's state
                await asyncio.sleep(0.2)
        yield url, psutil.Process(process.pid)
    finally:
        with suppress(ProcessLookupError):
            process.terminate()
        await process.wait()


async def _url(process: asyncio.subprocess.Process) -> str:
    if process.stdout is not None:
        async for line in process.stdout:
            found = re.search(rb"http://[^/ ]+", line)
            if found:
                return found[0].decode()
    raise SystemExit("the gateway did not start")


async def _watch(process: psutil.Process, report: Report, began: float) -> None:
    while True:
        report.memory_mb.append((time.monotonic() - began, process.memory_info().rss / 1e6))
        await asyncio.sleep(1)


async def _client(url: str, entropy: random.Random, report: Report, deadline: float) -> None:
    async with httpx2.AsyncClient(base_url=url, timeout=TIMEOUT_S) as client:
        while time.monotonic() < deadline:
            outcome = await _request(client, entropy, report)
            report.outcomes[outcome] += 1
            if outcome.startswith("error"):
                await asyncio.sleep(entropy.uniform(0.5, 1.5))  # as its Retry-After asks, only sooner


async def _request(client: httpx2.AsyncClient, entropy: random.Random, report: Report) -> str:
    leaves_after = entropy.randrange(1, 20) if entropy.random() < LEAVES else None
    body = {
        "messages": [{"role": "user", "content": "Tell a story about a frog. " * entropy.randrange(1, 8)}],
        "max_tokens": entropy.randrange(8, 96),
        "stream": entropy.random() < 0.8,
        "seed": entropy.randrange(2**31),
        "ignore_eos": True,
    }
    try:
        async with client.stream("POST", "/v1/chat/completions", json=body) as response:
            if response.status_code != 200 or not body["stream"]:
                return _outcome(json.loads(await response.aread()))
            return await _read(response, leaves_after, report)
    except (httpx2.HTTPError, ValueError) as error:
        return f"LOST {type(error).__name__}"


async def _read(response: httpx2.Response, leaves_after: int | None, report: Report) -> str:
    num_events, last = 0, ""
    async for line in response.aiter_lines():
        if line.startswith("data: "):
            num_events, last = num_events + 1, line.removeprefix("data: ")
            if num_events == leaves_after:
                return "left"
    report.num_tokens += num_events
    return "complete" if last == "[DONE]" else _outcome(json.loads(last)) if last else "LOST empty stream"


def _outcome(body: dict[str, Any]) -> str:
    """Of a whole answer, or of a stream's last event."""
    if "error" in body:
        return f"error {body['error']['code']}"
    return "complete" if body.get("object") == "chat.completion" else "LOST silent end"


def main() -> None:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    context = start_fork_server()
    result = asyncio.run(soak(context, arguments.minutes, arguments.clients, arguments.seed))
    print(json.dumps(result, indent=1))
    raise SystemExit(1 if result["lost"] else 0)


if __name__ == "__main__":
    main()
