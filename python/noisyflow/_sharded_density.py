"""A log-density over ranks: checked, agreed on, evaluated, differentiated.

`distributed.mixture_log_density` says what for. Points are NumPy arrays, or tensors on
a GPU; what travels is float64. Importing this module imports torch.
"""

from __future__ import annotations

import functools
import math
import zlib
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from noisyflow import _arrays, _device
from noisyflow._collectives import Elsewhere, Peers
from noisyflow._device_mixture import DeviceRows
from noisyflow._shard import Gradients, Shard, constant_like
from noisyflow.prepared import checked_max_lost_mass

Floats = NDArray[Any]
Tensor = torch.Tensor

_PLACES = ("replicated", "sharded")
# Points of all ranks that are evaluated together: 32 MiB in float64.
_COORDINATES_PER_ROUND = 2**22


class Checked(NamedTuple):
    """One rank's arguments, all fine by themselves."""

    points: Any  # (m, d) NumPy array, or tensor on a GPU
    centers: Any  # (n, d) NumPy array, or DeviceRows
    noise_std: float
    weights: Floats | None
    max_lost_mass: float
    is_sharded: bool
    is_tensor: bool
    wants: tuple[bool, ...]  # gradients: of points, noise_std, anything

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.centers.dtype  # type: ignore[no-any-return]

    def shard(self, num_centers: int) -> Shard:
        return Shard(
            *(self.centers, self.noise_std, self.weights),
            *(num_centers, self.max_lost_mass),
        )


def checked(
    points: Any,
    centers: Any,
    noise_std: Any,
    weights: Any,
    points_are: str,
    max_lost_mass: float | None,
) -> Checked:
    if not isinstance(points_are, str) or points_are not in _PLACES:
        raise ValueError(
            f'points_are must be "replicated" or "sharded", got {points_are!r}'
        )
    _arrays.check_same_kind("points", points, "centers", centers)
    given = [points, noise_std, centers, weights]
    needs = [_arrays.is_tensor(v) and v.requires_grad for v in given]
    if not torch.is_grad_enabled():
        needs = [False] * len(needs)
    (x, y, beta, w) = (detached(v) for v in (points, centers, noise_std, weights))
    if _arrays.is_tensor(beta):
        _arrays.check_scalar_shape(beta)
        if beta.dtype not in (torch.float32, torch.float64):
            raise TypeError(
                f"noise_std must be float32 or float64, got {beta.dtype}; pass "
                "noise_std.float()"
            )
        beta = float(beta)
    if _device.is_any_on_device(x, y):
        _device.require_alike("points", x, y)
        x = _device.as_rows("points", x, allow_empty=True)
        _device.check_values({"points": x}, None, {})
    else:
        x = _arrays.as_matrix("points", x, allow_empty=True)
    y = checked_rows("centers", y)
    if x.shape[1] != y.shape[1]:
        raise ValueError(
            "points and centers must have the same dimension, "
            f"got shapes {tuple(x.shape)} and {tuple(y.shape)}"
        )
    return Checked(
        *(x, y, _arrays.check_noise_std(beta, y.dtype)),
        *(None if w is None else checked_weights(w, y),),
        checked_max_lost_mass(max_lost_mass, y.dtype),
        *(points_are == "sharded", _arrays.is_tensor(points)),
        (needs[0], needs[1], any(needs)),
    )


def checked_rows(name: str, value: Any) -> Any:
    """A rank's finite (n, d) rows, maybe none: a NumPy array, or `DeviceRows`."""
    if _device.is_on_device(value):
        rows = _device.as_rows(name, value, allow_empty=True)
        (largest,) = _device.check_values({name: rows}, None, {})
        return DeviceRows(rows, largest)
    return _arrays.as_matrix(
        name, value, allow_empty=True, most_rows=_arrays.MOST_CENTERS
    )


def checked_weights(weights: Any, rows: Any) -> Floats:
    """Weights of a rank's rows on the host; what they sum to is not looked at."""
    if isinstance(rows, DeviceRows):
        _device.require_alike("weights", weights, rows.tensor)
        weights = weights.cpu()
    return _arrays.as_partial_weights(weights, len(rows), rows.dtype)


def detached(value: Any) -> Any:
    return value.detach() if _arrays.is_tensor(value) else value


# -- what ranks tell each other ---------------------------------------------------


class Facts(NamedTuple):
    """Numbers that a rank tells of its arguments; or columns of these, of all ranks."""

    is_sharded: Any
    num_points: Any
    dimension: Any
    itemsize: Any
    noise_std: Any
    max_lost_mass: Any
    num_centers: Any
    has_weights: Any  # -1 without centers, which need none
    total_weight: Any
    fingerprint: Any  # of replicated points
    wants_points: Any
    wants_noise_std: Any
    wants_any: Any


def facts(mine: Checked) -> Facts:
    (m, d) = mine.points.shape
    weights = mine.weights
    return Facts(
        is_sharded=float(mine.is_sharded),
        num_points=float(m),
        dimension=float(d),
        itemsize=float(mine.dtype.itemsize),
        noise_std=mine.noise_std,
        max_lost_mass=mine.max_lost_mass,
        num_centers=float(len(mine.centers)),
        has_weights=-1.0 if len(mine.centers) == 0 else float(weights is not None),
        total_weight=0.0 if weights is None else float(weights.sum(dtype=np.float64)),
        fingerprint=0.0 if mine.is_sharded else _fingerprint(mine.points),
        wants_points=float(mine.wants[0]),
        wants_noise_std=float(mine.wants[1]),
        wants_any=float(mine.wants[2]),
    )


def _fingerprint(points: Any) -> float:
    """A number that differs, all but surely, for other points; exact in float64."""
    if isinstance(points, np.ndarray):
        return float(zlib.crc32(np.ascontiguousarray(points).data))
    kind = torch.int32 if points.element_size() == 4 else torch.int64
    bits = points.contiguous().view(kind).long()
    place = torch.arange(1, bits.numel() + 1, device=bits.device).reshape(bits.shape)
    return float(int((bits * (2 * place + 1)).sum()) & (2**52 - 1))


class Agreement:
    """What all ranks said, once it is found to fit together."""

    def __init__(self, found: NDArray[np.float64]) -> None:
        of = Facts(*found.T)
        require_same("points_are", of.is_sharded, names=_PLACES)
        require_same("the dtype", of.itemsize, names={4: "float32", 8: "float64"})
        require_same("the dimension d", of.dimension)
        require_same("noise_std", of.noise_std)
        require_same("max_lost_mass", of.max_lost_mass)
        self.num_centers = checked_num_centers(of.num_centers)
        itemsize = int(of.itemsize[0])
        check_weights(of.has_weights, of.total_weight, self.num_centers, itemsize)
        self.is_sharded = bool(of.is_sharded[0])
        self.num_points = of.num_points.astype(np.int64)
        if not self.is_sharded:
            hint = '; points_are="sharded" is for points of each rank\'s own'
            require_same("the number of points", of.num_points, hint)
            if len(set(of.fingerprint.tolist())) > 1:
                raise ValueError(f"points must be the same on every rank{hint}")
        for name, want in (
            ("points", of.wants_points),
            ("noise_std", of.wants_noise_std),
        ):
            require_same(f"whether {name} requires gradients", want, names=_YES_OR_NO)
        if self.is_sharded:
            name = "whether any argument requires gradients, with sharded points,"
            require_same(name, of.wants_any, names=_YES_OR_NO)


_YES_OR_NO = ("no", "yes")


def require_same(
    name: str, values: NDArray[np.float64], hint: str = "", *, names: Any = None
) -> None:
    """Raises ValueError, on every rank, unless all ranks gave the same number.

    names: of the numbers, by them.
    """
    if len(set(values.tolist())) > 1:
        other = int((values != values[0]).argmax())
        (first, second) = (
            names[int(v)] if names else repr(float(v)).removesuffix(".0")
            for v in values[[0, other]]
        )
        raise ValueError(
            f"{name} must be the same on every rank, got {first} on rank 0 and {second}"
            f" on rank {other}{hint}"
        )


def checked_num_centers(counts: NDArray[np.float64], name: str = "centers") -> int:
    """Of all ranks together, at least one."""
    total = int(counts.sum())
    if total == 0:
        raise ValueError(f"{name} must not be empty on every rank")
    return total


def check_weights(
    has_weights: NDArray[np.float64],
    totals: NDArray[np.float64],
    num_centers: int,
    itemsize: int,
) -> None:
    """has_weights: -1 of a rank without centers, which may leave them out or not."""
    told = has_weights >= 0
    if not told.any() or not has_weights[told].any():
        return
    if (has_weights == 0).any():
        raise ValueError(
            "weights must be given by all ranks that have centers or by none, got none"
            f" on rank {int((has_weights == 0).argmax())} and some on rank"
            f" {int((has_weights == 1).argmax())}"
        )
    total = float(totals.sum())
    try:
        _arrays.check_weight_sum(total, num_centers, np.dtype(f"f{itemsize}"))
    except ValueError:
        raise ValueError(
            f"weights must sum to 1 over all ranks, got a sum of {total}; divide by the"
            " sum of all ranks"
        ) from None


# -- evaluation -----------------------------------------------------------------------


class Work:
    """A call's evaluation, and what its gradients need of it."""

    def __init__(self, peers: Peers, mine: Checked, told: Agreement) -> None:
        self.peers = peers
        self.mine = mine
        self.told = told
        self.log_part: Tensor | None = None  # of this rank, at replicated points
        self.result: Tensor  # of the whole, float64

    @functools.cached_property
    def shard(self) -> Shard:
        """Made where it is first used: within an attempt, as it may need memory."""
        return self.mine.shard(self.told.num_centers)

    def log_density(self) -> Tensor:
        """The merged log-density, (m,) float64, where the points are."""
        points = self.mine.points
        if self.mine.is_sharded:
            self.result = self._at_own_points()
        else:
            (self.log_part, error) = self.part_or_nan(points)
            self.result = self.peers.log_sum_exp(self.log_part).to(self.log_part.device)
            if bool(self.result.isnan().any()):  # so it is on every rank
                self.peers.raise_together(error)
            self._check_representable()
        return self.result

    def part_or_nan(self, points: Any) -> tuple[Tensor, Exception | None]:
        """This rank's part; NaN, for others to see, where that failed."""
        found = self.peers.attempt(lambda: self.shard.log_density(points))
        if not isinstance(found, Exception):
            return found, None
        return constant_like(points, math.nan), found

    def _check_representable(self) -> None:
        if bool(self.result.isnan().any()):
            raise Elsewhere
        values = self.result.cpu().numpy().astype(self.mine.dtype)
        _arrays.check_representable("the log-density", values, allow_minus_inf=False)

    def rounds(self) -> list[slice]:
        """Rows of every rank's own points that are evaluated together."""
        most = int(self.told.num_points.max())
        d = self.mine.points.shape[1]
        step = max(1, _COORDINATES_PER_ROUND // (self.peers.size * d))
        return [slice(start, start + step) for start in range(0, most, step)]

    def rows_of_all(self, rows: slice, values: Tensor) -> Tensor:
        """These rows of every rank's values, those of rank 0 first, without padding."""
        counts = self.counts(rows)
        padded = values.new_zeros((max(counts), *values.shape[1:]))
        mine = values[rows]
        padded[: len(mine)] = mine
        parts = self.peers.gather(padded)
        return torch.cat([part[:k] for part, k in zip(parts, counts, strict=True)])

    def counts(self, rows: slice) -> list[int]:
        """How many of these rows every rank has."""
        return [
            min(max(int(m) - rows.start, 0), rows.stop - rows.start)
            for m in self.told.num_points
        ]

    def for_owners(self, rows: slice, values: Tensor, padding: float) -> Tensor:
        """(ranks, rows, ...): values of `rows_of_all`, to be sent to their owners."""
        counts = self.counts(rows)
        shape = (len(counts), max(counts), *values.shape[1:])
        table = values.new_full(shape, padding)
        for row, part in zip(table, torch.split(values, counts), strict=True):
            row[: len(part)] = part
        return table

    def _at_own_points(self) -> Tensor:
        (own, error) = (torch.as_tensor(self.mine.points), None)
        found = []
        for rows in self.rounds():
            points = self.rows_of_all(rows, own).to(own.device)
            (part, wrong) = self.part_or_nan(_as_points(points))
            error = error or wrong
            table = self.for_owners(rows, part, -math.inf)
            merged = self.peers.log_sum_exp_of_own(table).to(part.device)
            found.append(merged[: len(own[rows])])
        self.result = torch.cat(found) if found else constant_like(own[:0], 0.0)
        outcome = error or self.peers.attempt(self._check_representable)
        self.peers.agree("results", outcome, lambda _: [])
        return self.result

    # -- gradients -----------------------------------------------------------------

    def gradients(
        self, grad_output: Tensor, wanted: tuple[bool, bool, bool, bool]
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, float | None]:
        """Of points, centers, weights and noise_std; by all ranks."""
        grad = grad_output.detach().double()
        if self.mine.is_sharded:
            return self._gradients_at_own_points(grad, wanted)
        at = (self.mine.points, self.result, grad, wanted, self.log_part)
        found = self.peers.attempt(lambda: self.shard.gradients(*at))
        if wanted[0] or wanted[3]:  # then every rank is here
            self.peers.agree("gradients", found, lambda _: [])
        elif isinstance(found, Exception):
            raise found
        of_points = found.points
        if of_points is not None:
            of_points = self.peers.sum(of_points).to(grad.device)
        noise = self._summed_noise(found.noise_std)
        return of_points, found.centers, found.weights, noise

    def _gradients_of_shard(self, *at: Any) -> Gradients:
        return self.shard.gradients(*at)

    def _summed_noise(self, part: float | None) -> float | None:
        if part is None:
            return None
        return float(self.peers.sum(torch.tensor([part], dtype=torch.float64))[0])

    def _gradients_at_own_points(
        self, grad: Tensor, wanted: tuple[bool, bool, bool, bool]
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, float | None]:
        own = torch.as_tensor(self.mine.points)
        error: Exception | None = None
        saved = torch.stack([self.result, grad], dim=1)
        of_points = []
        sums: list[Any] = [None, None, None]
        for rows in self.rounds():
            points = self.rows_of_all(rows, own).to(own.device)
            (merged, upstream) = self.rows_of_all(rows, saved).to(own.device).unbind(1)
            at = (_as_points(points), merged, upstream, wanted)
            found = self.peers.attempt(functools.partial(self._gradients_of_shard, *at))
            if isinstance(found, Exception):  # go on, for others to have what they need
                error = error or found
                nothing = torch.zeros_like(points, dtype=torch.float64)
                found = Gradients(nothing if wanted[0] else None, None, None, None)
            if found.points is not None:
                table = self.for_owners(rows, found.points, 0.0)
                part = self.peers.sum_of_own(table).to(grad.device)
                of_points.append(part[: len(own[rows])])
            parts = (found.centers, found.weights, found.noise_std)
            sums = [
                a if b is None else b if a is None else a + b
                for a, b in zip(sums, parts, strict=True)
            ]
        self.peers.agree("gradients", error, lambda _: [])
        noise = self._summed_noise(sums[2])
        return torch.cat(of_points) if of_points else None, sums[0], sums[1], noise


def _as_points(points: Tensor) -> Any:
    """Gathered points, as a shard takes them."""
    return points if _device.is_on_device(points) else points.numpy()


class LogDensity(torch.autograd.Function):
    """A log-density that is known already; its gradients by hand.

    What autograd would make of the collectives themselves is not used.
    """

    @staticmethod
    def forward(
        ctx: Any,
        work: Work,
        result: Tensor,
        points: Tensor,
        centers: Tensor,
        noise_std: Tensor | None,
        weights: Tensor | None,
    ) -> Tensor:
        ctx.work = work
        # Saved so that torch notices where they are changed before backward.
        ctx.save_for_backward(points, centers, noise_std, weights)
        return result.view_as(result)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Any:
        given = ctx.saved_tensors
        (points, centers, noise_std, weights) = ctx.needs_input_grad[2:]
        with torch.no_grad():
            found = ctx.work.gradients(
                grad_output, (points, centers, weights, noise_std)
            )
        (of_points, of_centers, of_weights, of_noise) = found
        grads: list[Any] = [of_points, of_centers, None, of_weights]
        if of_noise is not None:
            grads[2] = torch.tensor(of_noise, dtype=torch.float64)
        for index, (grad, value) in enumerate(zip(grads, given, strict=True)):
            if grad is None:
                continue
            grads[index] = grad.to(dtype=value.dtype, device=value.device)
            if torch.is_grad_enabled():  # create_graph=True
                tensors = [t for t in given if t is not None]
                once: Any = _Final.apply(grads[index], grad_output, *tensors)  # type: ignore[no-untyped-call]
                grads[index] = once
        return None, None, *grads


class _Final(torch.autograd.Function):
    """A gradient that depends on tensors in a way that is not known.

    once_differentiable would take it for a constant where grad_output is one.
    """

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, *tensors: Tensor) -> Tensor:
        return gradient.clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        raise RuntimeError(
            "log-densities over ranks can be differentiated once, not twice"
        )
