"""The SZT network without noise: its outputs, and whether any two of them coincide.

A deterministic layer tells of the input all that can be told where its outputs are all
different; which they are is decided in float64, with a bound on what rounding can do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import scipy.spatial
from numpy.typing import NDArray

from noisyflow import datasets
from noisyflow.estimate import Estimate
from noisyflow.experiments.szt_network import SIZES
from noisyflow.nn import NoisyMLP
from noisyflow.tracking import LayerInformation

Floats = NDArray[np.floating[Any]]


class DistinctOutputs:
    """I(X;T_l) and I(Y;T_l) of a network without noise: of which outputs coincide.

    Parameters
    ----------
    network : NoisyMLP
        Read at every call of `measure`; its noise is left out.
    """

    def __init__(self, network: NoisyMLP) -> None:
        self._network = network

    def measure(self, epoch: int) -> list[LayerInformation]:
        """The exact information of every hidden layer, of outputs in float64."""
        vector = np.concatenate(
            [one.detach().cpu().numpy().ravel() for one in self._network.parameters()]
        )
        classes = datasets.szt().labels
        return [
            LayerInformation(
                layer=number,
                mutual_information=_exact(information(outputs)),
                label_information=_exact(information(outputs, classes)),
                num_proposals=0,
                effective_sample_size=1.0,
                effective_sample_size_low=1.0,
            )
            for number, outputs in enumerate(clean_outputs(vector, np.float64), start=1)
        ]


def _exact(value: float) -> Estimate:
    """A number without any error."""
    return Estimate(value, 0.0, value, value, 0.0, 0, stopped_by="exact")


@dataclass(frozen=True)
class Separation:
    """How far apart the outputs of a layer without noise are.

    Parameters
    ----------
    gap : float
        The smallest distance of two outputs in float64: the largest difference of their
        coordinates. 0 where two coincide.
    rounding : float
        The most that rounding can have changed a coordinate.
    num_distinct, num_distinct_float32 : int
        Different outputs in float64 and in float32.
    """

    gap: float
    rounding: float
    num_distinct: int
    num_distinct_float32: int

    @property
    def is_sure(self) -> bool:
        """Whether all outputs differ in exact arithmetic, too."""
        return self.gap > 2 * self.rounding


def separations(parameters: Floats) -> list[Separation]:
    """How far apart the outputs of every hidden layer are, without noise.

    Parameters
    ----------
    parameters : (p,) float32 array
        As for `clean_outputs`.

    Returns
    -------
    list of Separation

    Notes
    -----
    The bound on rounding, layer by layer: with u = 2^-53, rows of n weights W and bias
    b, |error| <= |W| error' + (n + 2) u (|W| |t'| + |b|) + 4 u, as tanh grows no faster
    than its argument and is off by 4 u at most (two units in the last place).
    """
    unit = 2.0**-53
    found = []
    values: Floats = datasets.szt().inputs.astype(np.float64)
    rounding = 0.0
    outputs = clean_outputs(parameters, np.float64)
    short = clean_outputs(parameters, np.float32)
    for (weight, bias), after, in_float32 in zip(
        _layers(parameters.astype(np.float64)), outputs, short, strict=True
    ):
        gain = float(np.abs(weight).sum(axis=1).max())
        largest = gain * float(np.abs(values).max()) + float(np.abs(bias).max())
        rounding = gain * rounding + (weight.shape[1] + 2) * unit * largest + 4 * unit
        distances, _ = scipy.spatial.KDTree(after).query(after, k=2, p=np.inf)
        found.append(
            Separation(
                float(distances[:, 1].min()),
                rounding,
                len(np.unique(after, axis=0)),
                len(np.unique(in_float32, axis=0)),
            )
        )
        values = after
    return found


def clean_outputs(parameters: Floats, kind: Any) -> list[Floats]:
    """T_l of every hidden layer without any noise, computed in a floating-point type.

    Parameters
    ----------
    parameters : (p,) float32 array
        Weights and biases layer by layer, as `Results.parameters` has them.
    kind : dtype
        float32 or float64.

    Returns
    -------
    list of (4096, d_l) arrays
    """
    values: Floats = datasets.szt().inputs.astype(kind)
    outputs = []
    for weight, bias in _layers(parameters.astype(kind)):
        values = np.tanh(values @ weight.T + bias)
        outputs.append(values)
    return outputs


def _layers(vector: Floats) -> list[tuple[Floats, Floats]]:
    """Weights and bias of every hidden layer, from the vector of all."""
    layers = []
    for width, after in pairwise(SIZES[:-1]):
        weight, bias, vector = np.split(vector, [width * after, (width + 1) * after])
        layers.append((weight.reshape(after, width), bias))
    return layers


def information(outputs: Floats, labels: NDArray[np.int64] | None = None) -> float:
    """I(X;T), or I(Y;T), of outputs that are a function of equally likely inputs.

    Parameters
    ----------
    outputs : (m, d) array
    labels : (m,) array, optional
        Y of every input.

    Returns
    -------
    float
        In nats; exact: log m, or H(Y), where no two rows are the same.
    """
    _, point = np.unique(outputs, axis=0, return_inverse=True)
    of_points = _entropy(np.bincount(point.ravel()))
    if labels is None:
        return of_points
    pairs = np.bincount(point.ravel() * (labels.max() + 1) + labels)
    return of_points + _entropy(np.bincount(labels)) - _entropy(pairs)


def _entropy(counts: NDArray[np.int64]) -> float:
    """Entropy of a draw from the counted, in nats."""
    shares = counts[counts > 0] / counts.sum()
    # All different: exactly log m, not a sum of m roundings.
    if len(shares) == counts.sum():
        return math.log(len(shares))
    return float(-(shares * np.log(shares)).sum())
