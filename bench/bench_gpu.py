"""Kernels on a GPU beside their bounds and their peers: error, then pairs per second.

    bench/gpu.sh                                     # builds, tests, then calls this
    python bench/bench_gpu.py --ceilings ceilings.json --json gpu.json
    python bench/bench_gpu.py --launch-everything count.txt    # for sanitizers

The bound of a kernel is what the GPU's own rates allow: every pair takes one
exponential and 2d + 3 instructions (3d + 3 backward), of which one is issued a lane and
clock; the rates of both are measured (gpu_ceilings.cu), and without them the data sheet
of an H200 is used. Peers: torch.compile of the same formula with direct differences,
and KeOps. Errors are those of the log-density against float64 on the same GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import harness

# Issue slots and exponentials a second of an H200 by its data sheet.
_SHEET = {"fma_per_second": 3.35e13, "exp2_per_second": 4.18e12}
_DEVICE = "cuda"
_NOISE = 0.3
_CHECKED_POINTS = 256
_SECONDS_PER_ROW = 0.05  # of one launch: long beside launching it
_RUNS = 9
_PEER_POINTS = 2**15  # a compiler that keeps a number for every pair fits into memory
_COLUMNS = {"d": 4, "dtype": 8, "what": 22, "T pairs/s": 10, "of bound": 9, "error": 9}


# -- truth and bounds ---------------------------------------------------------


def exact_log_density(torch: Any, x: Any, y: Any, noise_std: float) -> Any:
    """The formula in float64 by direct differences, in parts."""
    (n, d) = y.shape
    columns = y.double()
    parts = []
    for point in x.double():
        squares = ((columns - point) ** 2).sum(dim=1)
        parts.append(torch.logsumexp(-squares / (2 * noise_std**2), dim=0))
    return torch.stack(parts) + harness.constant(n, d, noise_std)


def bound(ceilings: dict[str, float], d: int, slots: float) -> float:
    """Pairs a second that issue slots and exponentials allow."""
    issue = ceilings["fma_per_second"] / slots
    return min(issue, ceilings["exp2_per_second"])


# -- timing -------------------------------------------------------------------


def seconds_of(torch: Any, call: Callable[[], Any]) -> dict[str, float]:
    """Median, best and worst seconds of a call by the GPU's own clock."""
    for _ in range(2):
        call()
    runs = []
    for _ in range(_RUNS):
        (begin, end) = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        end.synchronize()
        runs.append(begin.elapsed_time(end) * 1e-3)
    return {"median": statistics.median(runs), "best": min(runs), "worst": max(runs)}


@contextlib.contextmanager
def reported(name: str) -> Iterator[None]:
    """A peer that cannot do a case says so, and the others go on."""
    try:
        yield
    except Exception as error:  # whatever a peer raises
        print(f"{name}: {type(error).__name__}: {str(error).splitlines()[0][:120]}")


# -- rows ---------------------------------------------------------------------


class Case:
    """Points around centers uniform on [-1, 1]^d, on the GPU."""

    def __init__(self, torch: Any, m: int, n: int, d: int, dtype: str) -> None:
        self.torch = torch
        generator = torch.Generator(_DEVICE).manual_seed(0)
        kind = getattr(torch, dtype)
        self.y = 2 * torch.rand((n, d), generator=generator, device=_DEVICE) - 1
        noise = torch.randn((m, d), generator=generator, device=_DEVICE)
        self.x = (self.y[torch.arange(m, device=_DEVICE) % n] + _NOISE * noise).to(kind)
        self.y = self.y.to(kind)
        self.exact = exact_log_density(torch, self.x[:_CHECKED_POINTS], self.y, _NOISE)

    def error(self, found: Any) -> float:
        """Largest absolute error at the checked points, nats."""
        return float((found[:_CHECKED_POINTS].double() - self.exact).abs().max())


def kernels(case: Case) -> dict[str, tuple[Callable[[], Any], float, bool]]:
    """Our launches: the call, its issue slots a pair, whether it is a log-density."""
    from noisyflow import _device

    (torch, x, y) = (case.torch, case.x, case.y)
    (m, (n, d)) = (len(x), y.shape)
    mixture = _device.Mixture(y, _NOISE, None, is_checked=True)
    own = torch.arange(m, device=_DEVICE) % n
    members = _device.membership(
        np.arange(0, n + 1, max(1, n // 64)) if n % 64 == 0 else np.array([0, n]),
        np.array([0, n]),
        y,
    )
    value = _device.launch_log_density(mixture, x, 0.0)
    ones = torch.ones_like(value)

    def forward(path: int) -> Callable[[], Any]:
        return lambda: _device.launch_log_density(mixture, x, 0.0, path)

    def backward(*wanted: bool) -> Callable[[], Any]:
        return lambda: _device.gradients(x, y, _NOISE, None, value, ones, *wanted)

    found = {
        "forward": (forward(0), 2 * d + 3, True),
        "forward, direct": (forward(1), 2 * d + 3, True),
        "blocks": (
            lambda: _device.launch_block_log_sums(mixture, x, own, members, True),
            2 * d + 3,
            False,
        ),
        "backward, points": (backward(True, False, False, False), 3 * d + 3, False),
        "backward, centers": (backward(False, True, False, False), 3 * d + 3, False),
        "backward, all": (backward(True, True, False, True), 5 * d + 5, False),
    }
    if x.dtype == torch.float32 and d >= 16:
        found["forward, tensor cores"] = (forward(2), 2 * d + 3, True)
    return found


def peers(case: Case) -> dict[str, Callable[[], Any]]:
    """Other people's log-densities of some of the points."""
    (torch, x, y) = (case.torch, case.x[:_PEER_POINTS], case.y)
    (n, d) = y.shape
    shift = harness.constant(n, d, _NOISE)
    scale = -1 / (2 * _NOISE**2)

    def formula(points: Any) -> Any:
        squares = ((points[:, None, :] - y[None, :, :]) ** 2).sum(dim=2)
        return torch.logsumexp(scale * squares, dim=1) + shift

    compiled = torch.compile(formula)
    found = {"torch.compile": lambda: compiled(x)}
    if harness.has_module("pykeops"):
        from pykeops.torch import LazyTensor

        def keops() -> Any:
            squares = ((LazyTensor(x[:, None]) - LazyTensor(y[None])) ** 2).sum(-1)
            return (scale * squares).logsumexp(dim=1)[:, 0] + shift

        found["KeOps"] = keops
    return found


def measure(torch: Any, args: Any, ceilings: dict[str, float]) -> list[dict[str, Any]]:
    """Every kernel and peer at every dimension."""
    table = harness.Table(
        list(_COLUMNS.items()),
        markdown=args.markdown,
    )
    rows = []
    for dtype in args.dtypes:
        for d in args.dims:
            n = 65_536
            rate = bound(ceilings, d, 2 * d + 3) / (1 if dtype == "float32" else 8)
            m = int(_SECONDS_PER_ROW * rate / n) // 128 * 128
            case = Case(torch, min(max(m, 4096), 2**22), n, d, dtype)
            ours = kernels(case)
            calls = {
                name: (call, slots, has) for name, (call, slots, has) in ours.items()
            }
            others = peers(case)
            for name, call in others.items():
                calls[name] = (call, 2 * d + 3, True)
            for name, (call, slots, has_value) in calls.items():
                with reported(f"{name}, d = {d}, {dtype}"):
                    error = case.error(call()) if has_value else None
                    seconds = seconds_of(torch, call)
                    num = len(case.x)
                    if name in others:
                        num = min(num, _PEER_POINTS)
                    pairs = num * n
                    rows.append(
                        {
                            "d": d,
                            "dtype": dtype,
                            "what": name,
                            "pairs": pairs,
                            "seconds": seconds,
                            "pairs_per_second": pairs / seconds["median"],
                            "share_of_bound": pairs
                            / seconds["median"]
                            / bound(ceilings, d, slots)
                            if dtype == "float32"
                            else None,
                            "error_nats": error,
                        }
                    )
                    row = rows[-1]
                    share = row["share_of_bound"]
                    table.row(
                        [
                            f"{d}",
                            dtype,
                            name,
                            f"{row['pairs_per_second'] / 1e12:.3g}",
                            "" if share is None else f"{share:.0%}",
                            "" if error is None else f"{error:.1e}",
                        ]
                    )
    return rows


def measure_entropy(torch: Any) -> dict[str, Any]:
    """`entropy` of a million samples in ten dimensions, from call to answer."""
    import noisyflow

    generator = torch.Generator(_DEVICE).manual_seed(0)
    samples = torch.tanh(torch.randn((10**6, 10), generator=generator, device=_DEVICE))
    seconds = []
    for _ in range(6):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        estimate = noisyflow.entropy(samples, 0.3)
        seconds.append(time.perf_counter() - begin)
    print(
        f"entropy, n = 10^6, d = 10: {statistics.median(seconds[1:]):.3f} s, the first "
        f"with its imports {seconds[0]:.3f} s; {estimate}"
    )
    return {
        "seconds_first": seconds[0],
        "seconds": seconds[1:],
        "value": estimate.value,
        "standard_error": estimate.standard_error,
        "num_pairs": estimate.num_pairs,
    }


def measure_skipping(torch: Any) -> dict[str, Any]:
    """A million points at small noise, with and without leaving pairs out."""
    from noisyflow import _device

    generator = torch.Generator(_DEVICE).manual_seed(0)
    y = torch.rand((2**20, 3), generator=generator, device=_DEVICE)
    x = y + 0.005 * torch.randn(y.shape, generator=generator, device=_DEVICE)
    mixture = _device.Mixture(y, 0.005, None, is_checked=True)
    record: dict[str, Any] = {}
    with reported("skipping"):
        every = _device.launch_log_density(mixture, x, 0.0)
        some = _device.launch_log_density(mixture, x, 1e-6)
        record["largest_difference"] = float((every - some).abs().max())
        for name, lost in (("every pair", 0.0), ("skipping", 1e-6)):
            record[name] = seconds_of(
                torch, lambda lost=lost: _device.launch_log_density(mixture, x, lost)
            )
            print(f"n = m = 2^20, d = 3, {name}: {record[name]['median']:.3g} s")
    return record


def launch_everything(torch: Any, out: str) -> None:
    """Every kernel on small, awkward shapes: what sanitizers are to look at."""
    from noisyflow import _device

    count = 0
    for dtype in ("float32", "float64"):
        for d in (1, 2, 3, 5, 10, 16, 33, 70):
            for m, n in ((1, 1), (130, 257), (1025, 63)):
                case = Case(torch, m, n, d, dtype)
                for call, _, _ in kernels(case).values():
                    call()
                    count += 1
                mixture = _device.Mixture(case.y, _NOISE, None, is_checked=True)
                before = _device._WORTH_A_QUESTION, _device._MOST_SHARE
                _device._WORTH_A_QUESTION, _device._MOST_SHARE = 0.0, 2.0
                with reported("skipping"):
                    _device.launch_log_density(mixture, case.x, 1e-6)
                    count += 1
                _device._WORTH_A_QUESTION, _device._MOST_SHARE = before
    torch.cuda.synchronize()
    Path(out).write_text(f"{count} launches\n")


# -- the command --------------------------------------------------------------


def write_whole(path: str, record: dict[str, Any]) -> None:
    """JSON that a reader sees whole or not at all."""
    part = Path(f"{path}.part")
    part.write_text(json.dumps(record, indent=2, allow_nan=False) + "\n")
    os.replace(part, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--dims", type=int, nargs="+", default=[1, 2, 3, 5, 10, 20, 64, 256]
    )
    parser.add_argument("--dtypes", nargs="+", default=["float32", "float64"])
    parser.add_argument("--quick", action="store_true", help="float32, four dimensions")
    parser.add_argument("--ceilings", help="JSON of gpu_ceilings.cu")
    parser.add_argument(
        "--launch-everything", metavar="FILE", help="write the number of launches there"
    )
    harness.add_output_arguments(parser)
    args = parser.parse_args()
    if args.quick:
        (args.dims, args.dtypes) = ([1, 3, 10, 64], ["float32"])
    try:
        import torch
    except ImportError:
        raise SystemExit("bench_gpu.py needs torch") from None
    from noisyflow import _device

    if not torch.cuda.is_available():
        raise SystemExit(
            "bench_gpu.py needs a GPU, and torch sees none; nothing was run"
        )
    try:
        _device.require(0)
    except RuntimeError as error:
        raise SystemExit(f"bench_gpu.py: {error}") from None
    if args.launch_everything:
        launch_everything(torch, args.launch_everything)
        return
    ceilings: dict[str, Any] = dict(_SHEET)
    if args.ceilings:
        ceilings = json.loads(Path(args.ceilings).read_text())
    print(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA "
        f"{torch.version.cuda}; {'measured' if args.ceilings else 'data-sheet'} rates: "
        f"{ceilings['fma_per_second'] / 1e12:.3g} T instructions/s, "
        f"{ceilings['exp2_per_second'] / 1e12:.3g} T exponentials/s"
    )
    record = {
        "machine": {**harness.machine(), "gpu": torch.cuda.get_device_name()},
        "date": time.strftime("%Y-%m-%d"),
        "ceilings": ceilings,
        "rows": measure(torch, args, ceilings),
        "skipping": measure_skipping(torch),
        "entropy": measure_entropy(torch),
    }
    if args.json:
        write_whole(args.json, record)
    tensor = {row["d"]: row for row in record["rows"] if row["what"].endswith("cores")}
    direct = {
        row["d"]: row
        for row in record["rows"]
        if row["what"] == "forward, direct" and row["dtype"] == "float32"
    }
    for d, row in tensor.items():
        ratio = row["pairs_per_second"] / direct[d]["pairs_per_second"]
        print(f"tensor cores at d = {d}: {ratio:.2f} times the direct path")
    slow = [
        f"d = {d}: {row['share_of_bound']:.0%}"
        for d, row in direct.items()
        if d <= 20 and not row["share_of_bound"] >= 0.85
    ]
    print(
        "below 85 % of the bound: " + (", ".join(slow) if slow else "none up to d = 20")
    )
    assert math.isfinite(record["entropy"]["value"])


if __name__ == "__main__":
    main()
