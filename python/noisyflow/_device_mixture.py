"""Centers that stay on a GPU through an estimate, whose queries are made on the host.

`DeviceRows` stands in for the array of centers: estimators ask it for its shape, and
for the few rows that queries are put around. `DeviceMixture` uploads the queries, runs
the kernels and brings the sums back.
"""

from __future__ import annotations

import math
import sys
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from noisyflow import _arrays, _device
from noisyflow._rows import AbstractRows
from noisyflow.prepared import Plan, PreparedMixture

Floats = NDArray[Any]
Indices = NDArray[np.int64]


class DeviceRows(AbstractRows):
    """(n, d) rows on a GPU."""

    def __init__(self, tensor: Any, largest: float) -> None:
        self.tensor = tensor
        self.largest = largest

    @classmethod
    def checked(
        cls, name: str, value: Any, shape: tuple[int, ...] | None = None
    ) -> DeviceRows:
        """A finite (n, d) tensor on a GPU; shape: as it was given."""
        _device.refuse_gradients(**{name: value})
        rows = _device.as_rows(name, value)
        (largest,) = _device.check_values(
            {name: rows.reshape(shape or rows.shape)}, None, {}
        )
        return cls(rows, largest)

    @property
    def shape(self) -> tuple[int, int]:
        return (int(self.tensor.shape[0]), int(self.tensor.shape[1]))

    @property
    def dtype(self) -> np.dtype[Any]:
        dtype = _device.numpy_dtype(self.tensor)
        assert dtype is not None
        return dtype

    def __getitem__(self, rows: Any) -> Floats:
        if not isinstance(rows, slice):
            rows = self._index(rows)
        found: Floats = self.tensor[rows].cpu().numpy()
        return found

    def take(self, rows: NDArray[Any]) -> DeviceRows:
        return DeviceRows(self.tensor[self._index(rows)], self.largest)

    def duplicates(
        self, blocks: Indices | None
    ) -> tuple[Indices, Indices, Indices] | None:
        return duplicates(self, blocks)

    def mixture(
        self, noise_std: float, weights: Floats | None, max_lost_mass: float
    ) -> DeviceMixture:
        return DeviceMixture(self, noise_std, weights, max_lost_mass)

    def block_log_sums(
        self,
        points: Floats,
        noise_std: float,
        own: Indices,
        offsets: Indices,
        outer_offsets: Indices | None,
        weights: Floats | None,
        include_rest: bool,
    ) -> tuple[Floats, Floats, Floats, Floats]:
        return block_log_sums(
            *(points, self, noise_std, own, offsets, outer_offsets),
            *(weights, include_rest),
        )

    def covariances(self, noise_std: float, weights: Floats | None) -> Floats:
        return covariances(self, noise_std, weights)

    def _index(self, rows: NDArray[Any]) -> Any:
        return _device.upload(rows, self.tensor)


def take_rows(centers: Any, rows: NDArray[Any]) -> Any:
    """Some rows of a NumPy array or of `AbstractRows`, contiguous, where they were."""
    if isinstance(centers, AbstractRows):
        return centers.take(rows)
    return np.ascontiguousarray(centers[rows])


def host_weights(weights: Any, centers: DeviceRows) -> Floats:
    """Weights of centers on a GPU as a NumPy array, checked."""
    _device.refuse_gradients(weights=weights)
    _device.require_alike("weights", weights, centers.tensor)
    return _arrays.as_weights(weights.detach().cpu(), len(centers), centers.dtype)


def mixture_of(
    centers: DeviceRows, noise_std: float, weights: Floats | None
) -> _device.Mixture:
    """What launches need of checked centers."""
    on_device = None if weights is None else _device.upload(weights, centers.tensor)
    return _device.Mixture(centers.tensor, noise_std, on_device, is_checked=True)


class DeviceMixture(PreparedMixture):
    """A prepared mixture on a GPU. No tree: its kernels skip by boxes, or not at all.

    Points of `log_density` and `explain` are tensors on the centers' device.
    """

    def __init__(
        self,
        centers: DeviceRows,
        noise_std: float,
        weights: Floats | None,
        max_lost_mass: float,
    ) -> None:
        super().__init__(centers, noise_std, weights, max_lost_mass)  # type: ignore[arg-type]
        self._mixture = mixture_of(centers, noise_std, weights)
        self._members: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_members": None}

    def log_density(self, points: Any) -> Any:
        """Log-density at points (m, d) on the GPU, as `mixture_log_density`."""
        return _device.mixture_log_density(self._mixture, points, self._max_lost_mass)

    def log_partial(self, points: Any) -> Any:
        """As that of `PreparedMixture`: NumPy points, or a tensor on the GPU."""
        is_here = isinstance(points, np.ndarray)
        x = _device.upload(points, self._mixture.centers) if is_here else points
        with _device.memory_hint("fewer points in a call need less"):
            result = _device.launch_log_density(self._mixture, x, self._max_lost_mass)
        self._mixture.check(x, {"the log-density": result}, allow_minus_inf=True)
        return result.cpu().numpy() if is_here else result

    def explain(self, points: Any) -> Plan:
        """The `Plan` of `log_density(points)`, which is computed for it."""
        mixture = self._mixture
        x = mixture.points(points)
        skips = _device.is_worth_skipping(x, mixture, self._max_lost_mass)
        num_pairs = len(x) * self.num_centers
        expected = float(num_pairs)
        if skips:
            expected *= _device.near_share(x, mixture, self._max_lost_mass)
        start = time.perf_counter()
        self.log_density(x)  # its check waits for the GPU
        seconds = time.perf_counter() - start
        return Plan(
            path="blocks of points" if skips else "every pair",
            num_pairs=num_pairs,
            expected_pairs=expected,
            expected_terms=0.0,
            expected_seconds=seconds,
            num_cells=0,
            num_bytes=x.element_size() * mixture.centers.numel() if skips else 0,
            evaluated_pairs=round(expected),
            aggregated_pairs=0,
            evaluated_terms=0,
            seconds=seconds,
        )

    def log_own_and_others(self, points: Floats, own: Indices) -> tuple[Floats, Floats]:
        """As that of `PreparedMixture`, of NumPy queries: up they go, sums come back.

        Every pair is evaluated: the others' sum, for which the kernel would have to
        know what it leaves out, is no part of what it skips by.
        """
        if self._members is None:
            everything = np.array([0, self.num_centers])
            self._members = _device.membership(
                everything, everything, self._mixture.centers
            )
        (own_center, others, _, _) = _log_sums(
            self._mixture, points, own, self._members, include_rest=False
        )
        return own_center, others


def block_log_sums(
    points: Floats,
    centers: DeviceRows,
    noise_std: float,
    own: Indices,
    offsets: Indices,
    outer_offsets: Indices | None,
    weights: Floats | None,
    include_rest: bool,
) -> tuple[Floats, Floats, Floats, Floats]:
    """`mixture_block_log_sums` of NumPy queries around centers on a GPU; trusted."""
    mixture = mixture_of(centers, noise_std, weights)
    outer = offsets if outer_offsets is None else outer_offsets
    members = _device.membership(offsets, outer, centers.tensor)
    return _log_sums(mixture, points, own, members, include_rest)


def _log_sums(
    mixture: _device.Mixture,
    points: Floats,
    own: Indices,
    members: Any,
    include_rest: bool,
) -> tuple[Floats, Floats, Floats, Floats]:
    """The four parts at NumPy queries, as NumPy arrays."""
    torch = sys.modules["torch"]
    x = _device.upload(points, mixture.centers)
    parts = _device.launch_block_log_sums(
        mixture, x, _device.upload(own, mixture.centers), members, include_rest
    )
    kept = 4 if include_rest else 2
    sums = torch.stack(parts[:kept]).cpu().numpy()
    names = ("own", "inner", "outer", "rest")
    for name, part in zip(names, sums, strict=False):
        _arrays.check_representable(f"the {name} sum", part, allow_minus_inf=True)
    nothing = np.full(len(points), -math.inf, points.dtype)
    (own_center, inner) = sums[:2]
    (outer, rest) = sums[2:] if include_rest else (nothing, nothing)
    return own_center, inner, outer, rest


def covariances(
    centers: DeviceRows, noise_std: float, weights: Floats | None
) -> Floats:
    """Posterior covariances at the centers themselves, (n, d, d), on the host."""
    mixture = mixture_of(centers, noise_std, weights)
    (_, _, found) = _device.checked_moments(mixture, mixture.centers, 1.0)
    array: Floats = found.cpu().numpy()
    return array


def duplicates(
    centers: DeviceRows, blocks: Indices | None
) -> tuple[Indices, Indices, Indices] | None:
    """Equal rows within each block: first row, number and group; None without any.

    first and number (k,) of every group, groups in the order of their first rows;
    group (n,) of every row.
    """
    torch = sys.modules["torch"]
    rows = centers.tensor
    n = len(rows)
    kind = torch.int32 if rows.element_size() == 4 else torch.int64
    bits = (rows + 0).contiguous().view(kind).long()  # -0.0 becomes 0.0
    key = torch.zeros_like(bits[:, 0])
    generator = np.random.default_rng(0x6D65726765)  # "merge"
    odd = generator.integers(-(2**63), 2**63 - 1, size=rows.shape[1] + 1) | 1
    for column, factor in zip(bits.unbind(dim=1), odd.tolist(), strict=False):
        mixed = (column + factor) * factor
        key += (mixed ^ (mixed >> 29)) * factor
    if blocks is not None:
        sizes = _device.upload(np.diff(blocks), rows)
        index = torch.arange(len(sizes), device=rows.device)
        key += int(odd[-1]) * torch.repeat_interleave(index, sizes, output_size=n)
    (ordered, order) = key.sort(stable=True)
    is_new = torch.ones_like(ordered, dtype=torch.bool)
    is_new[1:] = ordered[1:] != ordered[:-1]
    if bool(is_new.all()):
        return None
    # Ranks of equal keys, then groups in the order in which they are met first.
    starts = is_new.nonzero()[:, 0]
    by_key = torch.empty_like(order)
    by_key[order] = is_new.cumsum(0) - 1
    first_by_key = order[starts]  # a stable sort: the first of equal ones comes first
    (first, met) = first_by_key.sort()
    rank = torch.empty_like(met)
    rank[met] = torch.arange(len(met), device=met.device)
    group = rank[by_key]
    ends = torch.cat([starts[1:], starts.new_tensor([n])])
    counts = (ends - starts)[met]
    if not bool((rows == rows[first[group]]).all()):
        return None  # two different rows of one key: once in 2^64 pairs
    (a, b, c) = (part.cpu().numpy() for part in (first, counts, group))
    return a, b, c


def checked_samples(samples: Any) -> tuple[DeviceRows, Indices]:
    """All samples as rows, input after input, and the number of draws of each input.

    samples: (inputs, draws, d) tensor on a GPU, or a sequence of (draws_i, d) tensors.
    """
    if isinstance(samples, list | tuple):
        for i, block in enumerate(samples):
            _device.refuse_gradients(**{f"samples[{i}]": block})
        blocks = [_device.as_rows(f"samples[{i}]", x) for i, x in enumerate(samples)]
        for i, block in enumerate(blocks):
            _device.require_alike(f"samples[{i}]", block, blocks[0], "samples[0]")
            if block.shape[1] != blocks[0].shape[1]:
                raise ValueError(
                    f"samples must share one dimension d, got {blocks[0].shape[1]} in"
                    f" samples[0] and {block.shape[1]} in samples[{i}]"
                )
        sizes = np.array([len(block) for block in blocks])
        return DeviceRows.checked("samples", sys.modules["torch"].cat(blocks)), sizes
    if samples.ndim != 3:
        raise ValueError(
            "samples must have shape (inputs, draws, d), or be a list of (draws, d)"
            f" tensors, got shape {tuple(samples.shape)}"
            + "; pass samples[:, None] for one draw per input"
            * (samples.ndim == 2)
        )
    if samples.numel() == 0:
        raise ValueError(f"samples must not be empty, got shape {tuple(samples.shape)}")
    (num_inputs, num_draws, d) = samples.shape
    shape = tuple(samples.shape)
    rows = DeviceRows.checked("samples", samples.reshape(-1, d), shape)
    return rows, np.full(num_inputs, num_draws)
