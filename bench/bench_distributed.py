"""What ranks cost: seconds and bytes of a merge, pairs per second of a rank.

    python bench/bench_distributed.py --ranks 2
    torchrun --nproc-per-node 8 bench/bench_distributed.py --centers 10000000

Alone it starts its ranks itself, one thread each, on gloo. Under torchrun it takes the
ranks and the backend that are there (NCCL with --device cuda). Results are checked
against one process before anything is timed. A merge brings one number for each row and
rank together on all ranks; its rivals are all_reduce of maxima and then of sums, one
all_gather, and one exchange of all rows: what a merge is beyond 2^15 rows times ranks,
2^20 rows at a time. Times are the best of --repeats, as other processes only add to
them. Bytes are those that a rank hands to collectives for others, counted.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

import harness

ROWS = [1000, 10_000, 100_000, 1_000_000, 4_000_000]
NOISE_STD = 0.2


def start_ranks(count: int) -> None:
    """This script, once for each rank; raises if one fails."""
    with tempfile.TemporaryDirectory() as folder:
        meeting = {"WORLD_SIZE": str(count), "MEETING": f"{folder}/meeting"}
        running = [
            subprocess.Popen(
                [sys.executable, *sys.argv],
                env=os.environ | meeting | {"RANK": str(rank)},
            )
            for rank in range(count)
        ]
        codes = [process.wait() for process in running]
    if any(codes):
        raise SystemExit(f"ranks ended with {codes}")


def join(device: str) -> None:
    import torch
    import torch.distributed as dist

    meeting = os.environ.get("MEETING")
    where: dict[str, Any] = {}
    if meeting is not None:
        (rank, size) = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE"))
        where = {"init_method": f"file://{meeting}", "rank": rank, "world_size": size}
    if device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("nccl" if device == "cuda" else "gloo", **where)


def seconds(
    call: Callable[[], Any], repeats: int, of: Callable[[Any], Any] = np.median
) -> float:
    """Median over repeats of the slowest rank's seconds, after one to warm up."""
    import torch
    import torch.distributed as dist

    call()
    found = []
    for _ in range(repeats):
        dist.barrier()
        spent = torch.tensor([harness.seconds_of(call)], dtype=torch.float64)
        if dist.get_backend() == "nccl":
            spent = spent.cuda()
        dist.all_reduce(spent, op=dist.ReduceOp.MAX)
        found.append(float(spent))
    return float(of(found))


def merges(peers: Any, device: str, repeats: int) -> list[dict[str, Any]]:
    """Seconds of a merge and of its rivals, and bytes that a rank sends."""
    import torch
    import torch.distributed as dist

    from noisyflow import _collectives

    rows = []
    for count in ROWS:
        generator = torch.Generator().manual_seed(peers.rank)
        values = torch.randn(count, dtype=torch.float64, generator=generator)
        values = values.to(device)

        def reduced(values: Any = values) -> Any:
            top = values.clone()
            dist.all_reduce(top, op=dist.ReduceOp.MAX)
            total = torch.exp(values - top)
            dist.all_reduce(total)
            return top + torch.log(total)

        def gathered(values: Any = values) -> Any:
            return torch.logsumexp(peers.gather(values), dim=0)

        def merged(values: Any = values) -> Any:
            found = peers.log_sum_exp(values)
            if device == "cuda":
                torch.cuda.synchronize()
            return found

        def exchanged(values: Any = values) -> Any:
            with mock.patch.object(_collectives, "_MOST_GATHERED", 0):
                return peers._merge(values, _collectives._log_sum_exp)

        error = float((merged() - reduced()).abs().max())
        assert error < 1e-13, error
        sent = counted_bytes(peers, merged)
        rows.append(
            {
                "rows": count,
                "seconds": seconds(merged, repeats, min),
                "exchange_seconds": seconds(exchanged, repeats, min),
                "all_reduce_seconds": seconds(reduced, repeats, min),
                "all_gather_seconds": seconds(gathered, repeats, min),
                "sent_bytes": sent,
                "bytes_per_row": sent / count,
            }
        )
    return rows


def counted_bytes(peers: Any, call: Callable[[], Any]) -> int:
    """What this rank gives to collectives for other ranks in a call."""
    total = 0
    kept = (peers.gather, peers.exchange)

    def gather(values: Any) -> Any:
        nonlocal total
        total += values.numel() * values.element_size() * (peers.size - 1)
        return kept[0](values)

    def exchange(values: Any) -> Any:
        nonlocal total
        size = values.numel() * values.element_size()
        total += size * (peers.size - 1) // peers.size
        return kept[1](values)

    (peers.gather, peers.exchange) = (gather, exchange)
    try:
        call()
    finally:
        del peers.gather, peers.exchange  # the class's own again
    return total


def evaluations(args: Any, peers: Any) -> list[dict[str, Any]]:
    """Pairs per second of a rank, alone and with the others; every pair evaluated."""
    import torch

    import noisyflow
    from noisyflow import distributed

    (m, n, d) = (args.points, args.centers, args.dimensions)
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (m, d)).astype(args.dtype)
    mine = np.random.default_rng(1 + peers.rank)
    y = mine.uniform(-1, 1, (n, d)).astype(args.dtype)
    (points, centers) = (torch.from_numpy(array).to(args.device) for array in (x, y))
    (every, noise) = ({"max_lost_mass": 0.0}, NOISE_STD)

    def wait(result: Any) -> Any:
        if args.device == "cuda":
            torch.cuda.synchronize()
        return result

    def alone() -> Any:
        return wait(noisyflow.mixture_log_density(points, centers, noise, **every))

    def together() -> Any:
        return wait(distributed.mixture_log_density(points, centers, noise, **every))

    def own_points() -> Any:
        part = points[peers.rank :: peers.size]
        return wait(
            distributed.mixture_log_density(
                part, centers, noise, points_are="sharded", **every
            )
        )

    some = slice(0, 20)
    of_all = np.concatenate(peers.gather_arrays(y[:2000]))
    exact = harness.log_density(x[some], of_all, noise)
    found = distributed.mixture_log_density(x[some], y[:2000], noise)
    error = harness.error_against(found, exact)
    if args.dtype == "float64":
        assert error < 1e-12, error
    rows = []
    for name, call in (
        ("one rank's part alone", alone),
        ("all ranks, points on each", together),
        ("all ranks, own points", own_points),
    ):
        took = seconds(call, args.repeats)
        row = {"call": name, "seconds": took, "pairs_per_second": m * n / took}
        rows.append({**row, "error": error})
    share = {"standard_error": 1e-9, "max_pairs": args.queries * n * peers.size}
    took = seconds(
        lambda: distributed.entropy(centers, noise, population=True, **share), 1
    )
    rate = args.queries * n / took
    name = f"entropy, {args.queries} queries"
    rows.append({"call": name, "seconds": took, "pairs_per_second": rate})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=2, help="to start, if none are")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--points", type=int, default=10_000)
    parser.add_argument("--centers", type=int, default=20_000, help="of each rank")
    parser.add_argument("--dimensions", type=int, default=10)
    parser.add_argument("--dtype", default="float32", choices=["float32", "float64"])
    parser.add_argument("--queries", type=int, default=8192, help="of the estimate")
    parser.add_argument("--repeats", type=int, default=5)
    harness.add_timing_arguments(parser)
    harness.add_output_arguments(parser)
    args = parser.parse_args()
    if "RANK" not in os.environ:
        start_ranks(args.ranks)
        return
    sys.path.append(str(Path(__file__).parent))
    import warnings

    import torch

    from noisyflow import TargetWarning, runtime
    from noisyflow._collectives import Peers

    warnings.simplefilter("ignore", TargetWarning)  # the budget ends the estimate
    torch.set_num_threads(args.threads)
    runtime.set_num_threads(args.threads)
    join(args.device)
    peers = Peers(None)
    of_merges = merges(peers, args.device, args.repeats)
    of_calls = evaluations(args, peers)
    torch.distributed.destroy_process_group()
    if peers.rank > 0:
        return
    machine = harness.machine()
    setup = f"{peers.size} ranks, {args.threads} threads each, {args.dtype}"
    size = f"{args.points} points, {args.centers} centers a rank, d {args.dimensions}"
    print(f"{machine}\n{setup}, {runtime.cpu_target()}\n")
    table = harness.Table(
        [
            ("rows of a merge", 15),
            ("ms", 8),
            ("exchange", 8),
            ("all_reduce", 10),
            ("all_gather", 10),
            ("bytes sent", 10),
            ("a row", 6),
        ],
        markdown=args.markdown,
    )
    for row in of_merges:
        times = [
            row[f"{k}seconds"] for k in ("", "exchange_", "all_reduce_", "all_gather_")
        ]
        table.row(
            [
                str(row["rows"]),
                *(f"{1e3 * took:.2f}" for took in times),
                *(str(row["sent_bytes"]), f"{row['bytes_per_row']:.1f}"),
            ]
        )
    print(f"\n{size}")
    table = harness.Table(
        [("call", 28), ("seconds", 8), ("pairs/s of a rank", 17)],
        markdown=args.markdown,
    )
    for row in of_calls:
        rate = f"{row['pairs_per_second']:.3g}"
        table.row([row["call"], f"{row['seconds']:.3g}", rate])
    record = {"machine": machine, "setup": setup, "size": size}
    harness.write_json(args.json, {**record, "merges": of_merges, "calls": of_calls})


if __name__ == "__main__":
    main()
