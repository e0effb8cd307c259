"""What the CPU can do at most, and what follows for pairs per second.

    python bench/bench_ports.py                    # a second or two
    python bench/bench_ports.py --target avx2

Times single vector instructions (ports.cpp), then bounds the dense kernel by them: a
vector of pairs costs a difference and a fused multiply-add per dimension, then the
exponential and its addition. No code that computes the sum by direct differences with
that exponential is faster, whatever its loops look like.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from typing import Any

import harness

DIMS = (1, 2, 3, 5, 10, 20, 64, 256, 784)

# Instructions of the exponential and of adding it up, per vector, as csrc/core/
# exp2_poly.h does them: those that only the ports of additions and those that only the
# ports of multiplications take (where these differ). `degree`: one FMA each, or a
# multiplication and an addition.
_EXPONENTIAL = {
    # y = -scale s, fraction, polynomial, scale by the power | sum
    "avx512": {"multiply": 3, "add": 1},
    # min, two FMA, shift, product and sum in one FMA | difference
    "avx2": {"multiply": 5, "add": 1},
    # min, product, shift, product | three differences, sum
    "baseline": {"multiply": 4, "add": 4},
}


def measure(target: str) -> dict[str, Any]:
    """Rates of instructions, per nanosecond and per cycle; runs ports.cpp."""
    program = harness.compiled("ports.cpp", target)
    output = subprocess.run([program], check=True, capture_output=True, text=True)
    rates = json.loads(output.stdout)
    if rates["target"] != target:
        raise SystemExit(f"compiled for {rates['target']}, wanted {target}")
    return rates


def instructions(rates: dict[str, Any], dtype: str) -> dict[str, int]:
    """Of the exponential and its addition, per vector of pairs."""
    counts = dict(_EXPONENTIAL[rates["target"]])
    counts["multiply"] += rates[dtype]["degree"]
    if rates["target"] == "baseline":
        counts["add"] += rates[dtype]["degree"]
    return counts


def bound(rates: dict[str, Any], dtype: str, d: int) -> float:
    """Upper bound of pairs per second of the dense kernel, from measured rates.

    Three limits, of which the tightest holds: all multiplications, at the rate of
    multiplications; all additions, at theirs; all together, at the rate of a loop that
    mixes both. Where additions and multiplications share their ports, the third is it.
    """
    of = rates[dtype]
    counts = instructions(rates, dtype)
    has_fma = "fma" in of
    multiply, add = counts["multiply"] + d, counts["add"] + (d if has_fma else 2 * d)
    mixed = of["sub+fma" if has_fma else "sub+mul+add"]["per_ns"]
    nanoseconds = max(
        multiply / of["fma" if has_fma else "mul"]["per_ns"],
        add / of["add"]["per_ns"],
        (multiply + add) / mixed,
    )
    return 1e9 * of["lanes"] / nanoseconds


def best_of(records: list[dict[str, Any]]) -> dict[str, Any]:
    """The highest rate of every instruction: a limit is met undisturbed or never."""
    best = json.loads(json.dumps(records[0]))
    for record in records[1:]:
        for dtype in ("float32", "float64"):
            for name, value in record[dtype].items():
                if name == "ns_per_cycle":
                    best[dtype][name] = min(best[dtype][name], value)
                elif isinstance(value, dict):
                    faster = value["per_ns"] > best[dtype][name]["per_ns"]
                    best[dtype][name] = value if faster else best[dtype][name]
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", choices=list(_EXPONENTIAL))
    parser.add_argument("--dims", type=int, nargs="+", default=list(DIMS))
    harness.add_output_arguments(parser)
    args = parser.parse_args()
    target = args.target
    if target is None:
        from noisyflow import runtime

        target = runtime.cpu_target()
    harness.use_cpus(1)
    rates = best_of([measure(target) for _ in range(5)])
    record: dict[str, Any] = {"machine": harness.machine(), "rates": rates}
    ghz = 1 / rates["float32"]["ns_per_cycle"]
    print(f"{record['machine']['cpu']}, {target}, {ghz:.2f} GHz")

    print("\nInstructions per cycle (per ns); exp2: vectors per cycle.\n")
    names = [name for name, v in rates["float32"].items() if isinstance(v, dict)]
    table = harness.Table(
        [("instruction", 20), ("float32", 14), ("float64", 14)], markdown=args.markdown
    )
    for name in names:
        cells = [rates[dtype][name] for dtype in ("float32", "float64")]
        table.row([name, *(f"{c['per_cycle']:.2f} ({c['per_ns']:.2f})" for c in cells)])

    counts = {t: sum(instructions(rates, t).values()) for t in ("float32", "float64")}
    per_dimension = 2 if "fma" in rates["float32"] else 3
    print(
        f"\nPort bound, G pairs/s: {per_dimension} instructions per dimension, "
        f"{counts['float32']} (float32) or {counts['float64']} (float64) for the "
        "exponential and its sum.\n"
    )
    table = harness.Table(
        [("d", 4), ("float32", 8), ("float64", 8)], markdown=args.markdown
    )
    record["bound"] = {}
    for d in args.dims:
        pairs = {t: bound(rates, t, d) for t in ("float32", "float64")}
        record["bound"][d] = pairs
        table.row([str(d), *(f"{value / 1e9:.3f}" for value in pairs.values())])
    for dtype in ("float32", "float64"):
        of = rates[dtype]
        counted = of["lanes"] / bound(rates, dtype, 0) * 1e9
        if of["exp2"]["per_ns"] * counted > 1.03:
            print(
                f"\nThe {dtype} exponential alone is faster than its bound: "
                "_EXPONENTIAL counts instructions that it no longer has."
            )
    harness.write_json(args.json, record)


if __name__ == "__main__":
    main()
