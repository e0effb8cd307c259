"""Errors of every kernel against 50 digits, and those of peers, over one designed set.

    python bench/accuracy.py                       # all of it: minutes
    python bench/accuracy.py --quick               # as `noisyflow check --accuracy`
    python bench/accuracy.py --peers --keops       # peers beside us
    python bench/accuracy.py --write docs/numerics.md --record tests/accuracy.json

Cases, truth and bars are those of noisyflow/accuracy.py. --write puts the tables
between the markers of a page; --record keeps the entries of the quick set, which
tests/test_accuracy.py compares with what it finds. Exits with 1 beyond a bar.

Peers: scikit-learn's KernelDensity with its defaults and with rtol = 1e-4; torch by
|x|^2 + |y|^2 - 2 x.y and by torch.cdist as it comes, which expands, too, from 26 rows
on; SciPy's cdist and logsumexp; its gaussian_kde in one dimension, where one factor
makes its covariance noise_std^2; KeOps' LogSumExp where it is installed (--keops: it
compiles for every dimension).
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import harness
from noisyflow import _exact, accuracy, mixture_log_density

# A case to its log-densities; None where the peer has nothing for such a case.
Peer = Callable[[accuracy.Case], Any]

_FAILS = "fails"
_MARKED = {"float32": 1e-5, "float64": 1e-12}


def ours(case: accuracy.Case) -> Any:
    return mixture_log_density(
        case.points, case.centers, case.noise_std, weights=case.weights
    )


def _log_weights(case: accuracy.Case) -> Any:
    """In the case's dtype, as a user would have them."""
    n = len(case.centers)
    if case.weights is None:
        return np.full(n, -math.log(n), case.points.dtype)
    with np.errstate(divide="ignore"):
        return np.log(case.weights)


def _log_normaliser(case: accuracy.Case) -> float:
    return 0.5 * case.points.shape[1] * math.log(2 * math.pi * case.noise_std**2)


def kernel_density(case: accuracy.Case, *, rtol: float = 0.0) -> Any:
    """In float64 whatever it is given."""
    from sklearn.neighbors import KernelDensity

    weights = case.weights
    centers = case.centers
    if weights is not None:  # it takes none that are zero
        centers, weights = centers[weights > 0], weights[weights > 0]
    model = KernelDensity(bandwidth=case.noise_std, rtol=rtol)
    return model.fit(centers, sample_weight=weights).score_samples(case.points)


def torch_expanded(case: accuracy.Case) -> Any:
    import torch

    x, y = torch.from_numpy(case.points), torch.from_numpy(case.centers)
    squares = (x * x).sum(1)[:, None] + (y * y).sum(1)[None, :] - 2 * (x @ y.T)
    return _torch_sum(case, squares.clamp(min=0))


def torch_cdist(case: accuracy.Case) -> Any:
    import torch

    x, y = torch.from_numpy(case.points), torch.from_numpy(case.centers)
    return _torch_sum(case, torch.cdist(x, y) ** 2)


def _torch_sum(case: accuracy.Case, squares: Any) -> Any:
    import torch

    terms = torch.from_numpy(_log_weights(case)) - squares / (2 * case.noise_std**2)
    return (torch.logsumexp(terms, 1) - _log_normaliser(case)).numpy()


def scipy_direct(case: accuracy.Case) -> Any:
    """cdist computes in float64 whatever it is given."""
    from scipy.spatial.distance import cdist
    from scipy.special import logsumexp

    squares = cdist(case.points, case.centers, "sqeuclidean")
    terms = _log_weights(case) - squares / (2 * case.noise_std**2)
    return logsumexp(terms, axis=1) - _log_normaliser(case)


def gaussian_kde(case: accuracy.Case) -> Any:
    from scipy.stats import gaussian_kde

    if case.points.shape[1] > 1 or len(case.centers) < 2:
        return None
    spread = gaussian_kde(case.centers.T, 1.0, weights=case.weights).covariance[0, 0]
    factor = case.noise_std / math.sqrt(spread)
    return gaussian_kde(case.centers.T, factor, weights=case.weights).logpdf(
        case.points.T
    )


@functools.cache
def _keops(d: int, dtype: str) -> Any:
    from pykeops.torch import Genred

    return Genred(
        "W - G*SqDist(x,y)",
        [f"x=Vi({d})", f"y=Vj({d})", "G=Pm(1)", "W=Vj(1)"],
        reduction_op="LogSumExp",
        axis=1,
    )


def keops(case: accuracy.Case) -> Any:
    import torch

    d = case.points.shape[1]
    if d not in (1, 3, 20) or (case.weights is not None and case.weights.min() == 0):
        return None
    kind = getattr(torch, str(case.points.dtype))
    reduction = _keops(d, str(case.points.dtype))
    found = reduction(
        *(torch.from_numpy(case.points), torch.from_numpy(case.centers)),
        torch.tensor([0.5 / case.noise_std**2], dtype=kind),
        torch.from_numpy(_log_weights(case))[:, None],
        backend="CPU",
    )
    return found.view(-1).numpy() - _log_normaliser(case)


PEERS: dict[str, tuple[str, Peer]] = {
    "noisyflow": ("noisyflow", ours),
    "torch, expanded": ("torch", torch_expanded),
    "torch.cdist": ("torch", torch_cdist),
    "KernelDensity": ("sklearn", kernel_density),
    "KernelDensity, rtol 1e-4": (
        "sklearn",
        functools.partial(kernel_density, rtol=1e-4),
    ),
    "SciPy cdist": ("scipy", scipy_direct),
    "gaussian_kde, d = 1": ("scipy", gaussian_kde),
    "KeOps, d = 1, 3, 20": ("pykeops", keops),
}
_ONLY_FLOAT64 = {"KernelDensity", "KernelDensity, rtol 1e-4", "SciPy cdist"}
_ONLY_FLOAT64 |= {"gaussian_kde, d = 1"}


def peer_errors(
    dtype: str, names: list[str]
) -> dict[tuple[str, str], float | str | None]:
    """The largest error of each family and peer, over the quick set."""
    worst: dict[tuple[str, str], Any] = {}
    for case in accuracy.cases(dtype):
        truth, _ = _exact.exact_log_density(
            case.points[case.rows], case.centers, case.noise_std, case.weights
        )
        for name in names:
            if dtype == "float32" and name in _ONLY_FLOAT64:
                continue
            key = (case.family, name)
            try:
                with warnings.catch_warnings(), np.errstate(all="ignore"):
                    warnings.simplefilter("ignore")
                    found = PEERS[name][1](case)
            except Exception:  # a peer that fails is an entry, not the end
                worst[key] = _FAILS
                continue
            if found is None:
                worst.setdefault(key, None)
                continue
            result = np.asarray(found)
            error = accuracy.errors(case, (result, None), (truth, None))["log-density"]
            if worst.get(key) != _FAILS:
                worst[key] = max(worst.get(key) or 0.0, error)
    return worst


def peer_tables(names: list[str]) -> str:
    """Markdown: a table for each dtype."""
    parts = []
    for dtype in reversed(accuracy.DTYPES):
        worst = peer_errors(dtype, names)
        columns = [n for n in names if dtype == "float64" or n not in _ONLY_FLOAT64]
        unit = accuracy.unit_of(dtype, "log-density")
        lines = [
            f"*{dtype}*: {unit}; ! beyond {_MARKED[dtype]:.0e}",
            "",
            "| cases | " + " | ".join(columns) + " |",
            "|---|" + "---|" * len(columns),
        ]
        for family, about in accuracy.FAMILIES.items():
            if not any((family, name) in worst for name in columns):
                continue
            title = about.title
            if about.is_relative and dtype == "float32":
                title += " (relative)"
            cells = [_peer_cell(worst.get((family, n)), dtype) for n in columns]
            lines.append(f"| {title} | " + " | ".join(cells) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _peer_cell(error: float | str | None, dtype: str) -> str:
    if error is None:
        return ""
    if isinstance(error, str):
        return error
    if not math.isfinite(error):
        return "not finite"
    mark = " !" if error > _MARKED[dtype] else ""
    return f"{accuracy.rounded_up(error):.1e}{mark}"


def write_between(path: Path, marker: str, text: str) -> None:
    """Replaces what stands between the markers of this name."""
    begin, end = f"<!-- begin {marker} -->", f"<!-- end {marker} -->"
    page = path.read_text()
    if page.count(begin) != 1 or page.count(end) != 1:
        raise SystemExit(f"{path} needs the lines {begin} and {end}, each once")
    head, rest = page.split(begin)
    tail = rest.split(end)[1]
    path.write_text(f"{head}{begin}\n\n{text}\n\n{end}{tail}")


def record(quick: accuracy.Report) -> str:
    """What tests/test_accuracy.py holds the quick set to, as JSON."""
    entries = {
        "/".join(entry): accuracy.rounded_up(error)
        for entry, error in sorted(quick.errors.items())
    }
    about = "Written by `python bench/accuracy.py --record`; see tests/test_accuracy.py"
    return json.dumps({"about": about, "quick": entries}, indent=1) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="seconds, not minutes")
    parser.add_argument("--peers", action="store_true", help="peers instead")
    parser.add_argument("--keops", action="store_true", help="with --peers: KeOps, too")
    parser.add_argument("--write", type=Path, help="put the tables into this page")
    parser.add_argument("--record", type=Path, help="keep the quick set's entries")
    args = parser.parse_args()

    def progress(text: str) -> None:
        print(f"{time.strftime('%X')} {text}", file=sys.stderr, flush=True)

    if args.peers:
        names = [
            name
            for name, (module, _) in PEERS.items()
            if (module != "pykeops" or args.keops) and harness.has_module(module)
        ]
        tables = peer_tables(names)
        print(tables)
        if args.write:
            write_between(args.write, "accuracy of peers", tables)
        return 0
    report = accuracy.measure(is_full=not args.quick, progress=progress)
    print(report)
    if args.record:
        quick = report if args.quick else accuracy.measure(progress=progress)
        args.record.write_text(record(quick))
    if args.write:
        write_between(args.write, "accuracy", report.to_markdown())
    return 1 if report.broken else 0


if __name__ == "__main__":
    sys.exit(main())
