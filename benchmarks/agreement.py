"""What it costs several ranks to agree, in µs a call: ``python benchmarks/agreement.py``.

``exchange`` is what a training step pays; ``agree`` what is paid between batches of a validation. Between two calls
each rank works for a few milliseconds, as a training step does, and not all for equally long. Processes talk
through gloo on this machine; medians and 99th percentiles of all ranks' calls.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import statistics
import time
from datetime import timedelta


def serve(
    rank: int, world: int, port: int, calls: int, work: float, answers: multiprocessing.SimpleQueue
) -> None:
    """Be one rank: time each call, after some work."""
    import torch

    from hookloop.distributed import Requests, joined

    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True",
    }  # fmt: skip
    with joined() as ranks:
        taken: dict[str, list[float]] = {}
        for name in ("exchange", "agree"):
            call, times, asked = getattr(ranks, name), [], Requests()
            for i in range(calls + 50):
                time.sleep(work * (1 + (i * 7 + rank * 3) % 5 / 20))
                began = time.perf_counter()
                call(asked)
                times.append((time.perf_counter() - began) * 1e6)
            taken[name] = times[50:]
        answers.put(taken)


def measure(world: int, calls: int, work: float) -> dict[str, list[float]]:
    """Give what every call of every rank has taken, in µs."""
    from torch.distributed import TCPStore

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=60))
    context = multiprocessing.get_context("spawn")
    answers = context.SimpleQueue()
    processes = [
        context.Process(target=serve, args=(rank, world, store.port, calls, work, answers))
        for rank in range(world)
    ]
    for process in processes:
        process.start()
    found = [answers.get() for _ in processes]
    for process in processes:
        process.join()
    return {name: [time for one in found for time in one[name]] for name in found[0]}


def main() -> None:
    """Measure, and print a line for each number of ranks and each way to agree."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--calls", type=int, default=500)
    parser.add_argument("--work", type=float, default=5.0, help="milliseconds between two calls")
    options = parser.parse_args()
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {options.calls} calls a rank"
    )
    for world in options.ranks:
        for name, times in measure(world, options.calls, options.work / 1e3).items():
            print(
                f"{world} ranks  {name:8}  median {statistics.median(times):7.1f} µs  "
                f"99 % {statistics.quantiles(times, n=100)[98]:8.1f} µs"
            )


if __name__ == "__main__":
    main()
