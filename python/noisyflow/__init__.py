"""How information flows through noisy neural networks, with error bars."""

from __future__ import annotations

try:
    from noisyflow import _core as _core
except ImportError as error:  # pragma: no cover - a broken installation
    raise ImportError(
        "the compiled part of noisyflow is missing or was built for another Python; "
        "install it with `pip install .` in a clone of the project"
    ) from error

from noisyflow.bounds import EntropyBounds, entropy_bounds
from noisyflow.covariance import (
    gaussian_mixture_log_density,
    whitening_from_covariances,
)
from noisyflow.estimate import Estimate, TargetWarning, UndersampledWarning
from noisyflow.information import (
    conditional_entropy,
    entropy,
    mutual_information,
)
from noisyflow.mixture import (
    BlockLogSums,
    PosteriorMoments,
    explain,
    mixture_block_log_sums,
    mixture_log_density,
    posterior_moments,
)
from noisyflow.prepared import Plan, PreparedMixture, prepare

__version__ = "0.1.0"

__all__ = [
    "BlockLogSums",
    "EntropyBounds",
    "Estimate",
    "Plan",
    "PosteriorMoments",
    "PreparedMixture",
    "TargetWarning",
    "UndersampledWarning",
    "conditional_entropy",
    "entropy",
    "entropy_bounds",
    "explain",
    "gaussian_mixture_log_density",
    "mixture_block_log_sums",
    "mixture_log_density",
    "mutual_information",
    "posterior_moments",
    "prepare",
    "whitening_from_covariances",
]
