"""One rank's part of a mixture: its share of the sum at points, and of the gradients.

The kernels see a mixture of their own, whose weights sum to 1; what it has of the whole
is a constant. With share s_r of rank r and L_r the log-density of its own mixture,

    L = log sum_r s_r exp(L_r),    dL = sum_r p_r dL_r,    p_r = s_r exp(L_r - L),

so gradients of the whole are those of the parts, weighted by posterior probabilities.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from noisyflow import _core, _device
from noisyflow._device_mixture import DeviceMixture, DeviceRows
from noisyflow.prepared import PreparedMixture
from noisyflow.runtime import num_threads

Floats = NDArray[Any]
Indices = NDArray[np.int64]
Tensor = torch.Tensor


class Gradients(NamedTuple):
    """Of a sum over points; float64, None where not wanted."""

    points: Tensor | None
    centers: Tensor | None
    weights: Tensor | None
    noise_std: float | None


def constant_like(points: Any, value: float) -> Tensor:
    """(m,) float64, where the points are."""
    if isinstance(points, torch.Tensor):
        return points.new_full((len(points),), value, dtype=torch.float64)
    return torch.full((len(points),), value, dtype=torch.float64)


class Shard:
    """Checked centers of this rank, maybe none, of `num_centers` on all ranks.

    weights: (n,) of these centers, of a vector that sums to 1 over all ranks. Points
    and centers are NumPy arrays, or on a GPU tensors and `DeviceRows`.
    """

    def __init__(
        self,
        centers: Any,
        noise_std: float,
        weights: Floats | None,
        num_centers: int,
        max_lost_mass: float,
    ) -> None:
        self._centers = centers
        self.noise_std = noise_std
        self._given = weights
        self._max_lost_mass = max_lost_mass
        self.share = len(centers) / num_centers
        self.weights: Floats | None = None
        if weights is not None:
            self.share = float(weights.sum(dtype=np.float64))
            if self.share > 0:
                exact = weights.astype(np.float64) / self.share
                self.weights = exact.astype(weights.dtype)
        self.mixture: PreparedMixture | None = None
        if self.share > 0:
            self.mixture = self._prepared(self.weights)

    def _prepared(self, weights: Floats | None) -> PreparedMixture:
        is_on_device = isinstance(self._centers, DeviceRows)
        kind = DeviceMixture if is_on_device else PreparedMixture
        return kind(self._centers, self.noise_std, weights, self._max_lost_mass)

    @property
    def log_share(self) -> float:
        return math.log(self.share) if self.share > 0 else -math.inf

    def log_density(self, points: Any) -> Tensor:
        """log of this rank's part of the sum at points, (m,) float64; -inf if empty."""
        if self.mixture is None:
            return constant_like(points, -math.inf)
        found = torch.as_tensor(self.mixture.log_partial(points))
        return found.double() + self.log_share

    def gradients(
        self,
        points: Any,
        log_density: Tensor,
        grad_output: Tensor,
        wanted: tuple[bool, bool, bool, bool],
        log_part: Tensor | None = None,
    ) -> Gradients:
        """This rank's part of the gradients of sum_i grad_output[i] log_density[i].

        log_density: of the whole mixture, (m,) float64; log_part: what `log_density` of
        the shard said, or it is found again. wanted: points, centers, weights, noise.
        """
        (want_points, want_centers, want_weights, want_noise) = wanted
        (n, d) = self._centers.shape
        zeros = partial(grad_output.new_zeros, dtype=torch.float64)
        of_points = zeros((len(points), d)) if want_points else None
        of_centers = zeros((n, d)) if want_centers else None
        of_weights = zeros((n,)) if want_weights else None
        of_noise = 0.0 if want_noise else None
        if want_weights and n and self._given is not None and self._given.min() == 0:
            # A center without weight is not in the sum, and may be nearer than all
            # that are: its gradient comes from the mixture in which all are alike.
            of_weights = self._weights_from_uniform(points, log_density, grad_output)
            want_weights = False
        if self.mixture is not None:
            if log_part is None:
                log_part = self.log_density(points)
            gain = grad_output.double() * torch.exp(log_part - log_density)
            rows = gain.nonzero()[:, 0]
            if len(rows):
                found = self._of_own(
                    points,
                    self.weights,
                    (log_part - self.log_share)[rows],
                    gain[rows],
                    rows,
                    (want_points, want_centers, want_weights, want_noise),
                )
                if of_points is not None and found[0] is not None:
                    of_points[rows] = found[0].double()
                if want_centers:
                    of_centers = found[1]
                if want_weights and found[2] is not None:
                    of_weights = found[2].double() / self.share
                if want_noise:
                    of_noise = float(found[3])
        return Gradients(of_points, of_centers, of_weights, of_noise)

    def _weights_from_uniform(
        self, points: Any, log_density: Tensor, grad_output: Tensor
    ) -> Tensor:
        """sum_i grad_output[i] N(x_i; y_j, s^2 I) / exp(log_density[i]), (n,)."""
        assert self._given is not None
        n = len(self._given)
        alone = torch.as_tensor(self._prepared(None).log_partial(points)).double()
        most = torch.finfo(torch.float64).max / max(len(points), 1)
        gain = grad_output.double() * torch.exp(alone - log_density)
        gain = gain.nan_to_num(nan=0.0, posinf=most, neginf=-most)
        rows = gain.nonzero()[:, 0]
        if not len(rows):
            return grad_output.new_zeros(n, dtype=torch.float64)
        uniform = np.full(n, 1 / n, self._given.dtype)
        wanted = (False, False, True, False)
        at = (points, uniform, alone[rows], gain[rows], rows, wanted)
        found: Tensor = self._of_own(*at)[2]
        return found.double()

    def _of_own(
        self,
        points: Any,
        weights: Floats | None,
        log_density: Tensor,
        gain: Tensor,
        rows: Tensor,
        wanted: tuple[bool, bool, bool, bool],
    ) -> tuple[Any, Any, Any, Any]:
        """Gradients of the mixture of these centers alone, at some of the points."""
        lost = self._max_lost_mass
        if isinstance(self._centers, DeviceRows):
            centers = self._centers.tensor
            w = None
            if weights is not None:
                w = centers.new_empty(len(weights)).copy_(torch.from_numpy(weights))
            at = (points[rows], centers, self.noise_std, w)
            like = {"dtype": centers.dtype, "device": centers.device}
            known = (log_density.to(**like), gain.to(**like))
            return _device.gradients(*at, *known, *wanted, lost)
        dtype = self._centers.dtype
        (a, b, c, noise) = _core.log_density_gradients(
            np.ascontiguousarray(points[rows.numpy()]),
            self._centers,
            self.noise_std,
            weights,
            log_density.numpy().astype(dtype),
            gain.numpy().astype(dtype),
            *wanted,
            lost,
            num_threads(),
        )
        tensors = [None if g is None else torch.from_numpy(g) for g in (a, b, c)]
        return tensors[0], tensors[1], tensors[2], noise
