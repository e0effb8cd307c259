"""What the SZT networks without and with noise show: figures, tables and claims.

Everything here reads finished results and trains nothing. X is uniform over the 4096
inputs, so that H(Bin(T_l)) of the deterministic network is the exact I(X;Bin(T_l)).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from noisyflow import datasets
from noisyflow.experiments import Claim
from noisyflow.experiments.szt_network import CEILING, SIZES
from noisyflow.report import Figure, Part
from noisyflow.runs import Results, RunFolder

if TYPE_CHECKING:
    from noisyflow.experiments.szt_deterministic import Config

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Study:
    """The results of both networks.

    Parameters
    ----------
    config : Config
    deterministic, noisy : Results
    """

    config: Config
    deterministic: Results
    noisy: Results


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
    vector = parameters.astype(kind)
    values = datasets.szt().inputs.astype(kind)
    outputs = []
    for width, after in zip(SIZES[:-2], SIZES[1:-1], strict=True):
        weight, bias, vector = np.split(vector, [width * after, (width + 1) * after])
        values = np.tanh(values @ weight.reshape(after, width).T + bias)
        outputs.append(values)
    return outputs


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


def plot(study: Study, folder: RunFolder) -> list[Figure]:
    return []


def claims(study: Study) -> list[Claim]:
    return []


def parts(study: Study, folder: RunFolder) -> Sequence[Part]:
    return []


def summary(study: Study) -> str:
    return ""
