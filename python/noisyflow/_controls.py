"""Control variates: functions of a query whose mean is known, regressed out.

All have mean zero over centers and noise by construction, so that with slopes fixed
beforehand they could not bias anything. Fitted slopes can, where records are few for
the controls, hence many records for each. The controls are |z|^2; the wanted function
at the center itself, less its mean over centers; their product; and the quadratic forms
z'Cz - tr C, C the covariance of the mixture's centers as seen from the center, which
are the second-order terms of the log-density (its Hessian is
(C / noise_std^2 - I) / noise_std^2).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from noisyflow._rows import AbstractRows
from noisyflow.mixture import posterior_moments

Floats = NDArray[np.float64]
Points = NDArray[np.floating]
Indices = NDArray[np.int64]

MOST_MOMENT_DIMS = 32
# Of the noise that the quadratic forms see: the second, of twice the variance, stands
# for what a Taylor series around the center misses at the distance of a query.
_WIDTHS = (1.0, math.sqrt(2.0))
NUM_FORMS = len(_WIDTHS)
# The column that differs between centers: all others vanish in the mean over noise.
LEVEL = 1
# Fitted to fewer, the slopes follow rare values: with 32 records for 6 controls four of
# five estimates of uneven small mixtures were off by more than two of their errors.
_RECORDS_PER_CONTROL = 400
_SMALLEST_LEVEL = 1e-4  # nats; less is rounding in float32, and worth nothing
# Below this condition a control is a combination of others but for rounding.
_RANK_TOLERANCE = 1e-9


class Controls:
    """Values of the controls at queries; at first of |z|^2 alone."""

    def __init__(self, centers: Any, noise_std: float) -> None:
        self._centers = centers
        self._noise_std = noise_std
        self._level: Floats | None = None
        self._forms: list[Floats] = []

    @property
    def has_level(self) -> bool:
        return self._level is not None

    @property
    def has_forms(self) -> bool:
        return len(self._forms) > 0

    def add_level(self, at_centers: Floats, weights: Floats | None) -> None:
        """at_centers (n,): the wanted function at every center, of these weights."""
        mean = at_centers.mean() if weights is None else weights @ at_centers
        level = at_centers - mean
        # Equal but for rounding, as on a symmetric grid: its mean is not zero next to
        # its own size, and a slope would make that large.
        self._level = level if level.std() > _SMALLEST_LEVEL else np.zeros_like(level)

    def add_forms(self, mixture_weights: Points | None) -> None:
        """Quadratic forms of every center, for a pass over all pairs each."""
        for width in _WIDTHS:
            found = self._covariances(width * self._noise_std, mixture_weights)
            forms = np.asarray(found, np.float64) / self._noise_std**2
            self._forms.append(forms)

    def _covariances(self, noise_std: float, weights: Points | None) -> Points:
        """Of the mixture's centers as seen from each center."""
        if isinstance(self._centers, AbstractRows):
            return self._centers.covariances(noise_std, weights)
        found: Points = posterior_moments(
            self._centers, self._centers, noise_std, weights=weights
        ).covariance
        return found

    def values(self, own: Indices, noise: Floats) -> Floats:
        """Every control at queries; (queries, controls). All are even in the noise."""
        norm = 0.5 * ((noise**2).sum(axis=1) - noise.shape[1])
        columns = [norm]
        if self._level is not None:
            level = self._level[own]
            columns += [level, norm * level]
            columns += [_centered_form(forms, own, noise) for forms in self._forms]
            if self._forms:
                columns.append(columns[-1] * level)
        return np.stack(columns, axis=1)


def _centered_form(forms: Floats, row: Indices, noise: Floats) -> Floats:
    """z'Cz - tr C for each z and its C; in pieces, as C is d x d for every query."""
    result = np.empty(len(row))
    d = noise.shape[1]
    step = max(1, 2**22 // d**2)
    traces = np.trace(forms, axis1=1, axis2=2)
    for start in range(0, len(row), step):
        part = slice(start, start + step)
        z = noise[part]
        product = np.matmul(forms[row[part]], z[:, :, None])[:, :, 0]
        result[part] = (product * z).sum(axis=1)
    return np.asarray(result - traces[row])


def least_squares_slopes(values: Floats, controls: Floats) -> Floats:
    """Slopes (c, k) of values (records, k) on controls (records, c), with an intercept.

    Zero for controls that are constant, or add nothing beyond rounding, and for the
    last of those that are too many for the records.
    """
    slopes = np.zeros((controls.shape[1], values.shape[1]))
    centered = controls - controls.mean(axis=0)
    scale = np.sqrt((centered**2).mean(axis=0))
    used = scale > 0
    used[len(values) // _RECORDS_PER_CONTROL :] = False
    if used.any():
        deviations = values - values.mean(axis=0)
        fit = np.linalg.lstsq(
            centered[:, used] / scale[used], deviations, rcond=_RANK_TOLERANCE
        )
        slopes[used] = fit[0] / scale[used, None]
    return slopes
