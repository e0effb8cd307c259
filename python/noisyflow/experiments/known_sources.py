"""Sources S with known h(S + Z): the problems of the papers' simulation study.

Exact values are one-dimensional integrals, summed by the trapezoid rule over smooth
functions that vanish at both ends (error far below 1e-9); the dimensions are
independent, so the entropy is d times that of one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Of each component per dimension. The paper (arXiv 1810.11589, figures 2 to 4) does not
# state it; with this value the exact entropies are those of its dashed lines.
COMPONENT_STD = 0.02


@dataclass(frozen=True)
class Source:
    """A distribution of S beside which noise is put.

    Parameters
    ----------
    family : str
        What the source is, for tables: cube, open-cube, spiral, code.
    num_dimensions : int
    noise_std : float
        Standard deviation of Z.
    entropy : float
        h(S + Z) in nats.
    sample : callable
        `sample(generator, n)` gives (n, d) float32 samples of S.
    """

    family: str
    num_dimensions: int
    noise_std: float
    entropy: float
    sample: Callable[[np.random.Generator, int], NDArray[np.float32]]

    @property
    def name(self) -> str:
        """Family, dimensions and noise in one word."""
        return f"{self.family}-d{self.num_dimensions}-noise{self.noise_std:.4g}"

    @property
    def information(self) -> float:
        """I(S; S + Z) = h(S + Z) - h(Z), nats."""
        return self.entropy - noise_entropy(self.num_dimensions, self.noise_std)


def noise_entropy(d: int, noise_std: float) -> float:
    """h(Z) = (d/2) log(2 pi e noise_std^2), nats."""
    return 0.5 * d * math.log(2 * math.pi * math.e * noise_std**2)


def cube_mixture(d: int, noise_std: float, *, is_truncated: bool) -> Source:
    """Gaussians of standard deviation 0.02 at the corners of [-1, 1]^d.

    Parameters
    ----------
    d : int
    noise_std : float
    is_truncated : bool
        Whether S is conditioned to lie in the cube; other corners are a hundred
        standard deviations away, so each component then is a half-normal one.

    Returns
    -------
    Source
        Of family cube or open-cube.
    """

    def sample(generator: np.random.Generator, n: int) -> NDArray[np.float32]:
        corner = generator.choice([-1.0, 1.0], (n, d))
        offset = COMPONENT_STD * generator.standard_normal((n, d))
        if is_truncated:
            offset = -corner * np.abs(offset)
        return np.asarray(corner + offset, np.float32)

    entropy = d * _corner_entropy(noise_std, is_truncated=is_truncated)
    family = "cube" if is_truncated else "open-cube"
    return Source(family, d, noise_std, entropy, sample)


def full_code(d: int, noise_std: float) -> Source:
    """All words of {-1, 1}^d, equally likely, over the Gaussian channel.

    The Reed-Muller code RM(r, r) is the whole space of d = 2^r bits: every word is a
    codeword, so d independent bits sample it. Bits 0 and 1 are sent as -1 and 1.
    """

    def sample(generator: np.random.Generator, n: int) -> NDArray[np.float32]:
        return np.asarray(2.0 * generator.integers(0, 2, (n, d)) - 1, np.float32)

    def density(t: Floats) -> Floats:
        return 0.5 * (_normal(t - 1, noise_std) + _normal(t + 1, noise_std))

    return Source("code", d, noise_std, d * _entropy_of(density, noise_std), sample)


def reed_muller_words(r: int, m: int) -> NDArray[np.float32]:
    """All words of the Reed-Muller code RM(r, m), with bits 0 and 1 as -1 and 1.

    A word is the table of a polynomial of degree r or less in m bits.

    Parameters
    ----------
    r, m : int
        Order and number of variables, 0 <= r <= m.

    Returns
    -------
    (words, 2^m) array
        2^k words, k = sum of the binomials (m over 0) to (m over r); the first has all
        bits 0.
    """
    bits = (np.arange(2**m)[:, None] >> np.arange(m)) & 1
    monomials = [
        bits[:, list(chosen)].prod(axis=1)
        for degree in range(r + 1)
        for chosen in itertools.combinations(range(m), degree)
    ]
    count = len(monomials)
    coefficients = (np.arange(2**count)[:, None] >> np.arange(count)) & 1
    words = coefficients @ np.array(monomials) % 2
    return np.asarray(2.0 * words - 1, np.float32)


def expected_plug_in_without_noise(n: int, num_words: int) -> float:
    """E[entropy of the counts] of n draws from equally likely words, nats.

    What the plug-in estimate of I(S; T) tends to as the noise vanishes:
    log n - (num_words / n) sum_c P(c) c log c, c ~ Binomial(n, 1 / num_words).
    """
    from scipy.special import gammaln

    mean = n / num_words
    most = min(n, int(mean + 12 * math.sqrt(mean)) + 40)  # beyond it below 1e-15
    c = np.arange(2, most + 1)
    log_choices = gammaln(n + 1) - gammaln(c + 1) - gammaln(n - c + 1)
    log_odds = -math.log(num_words) * c + math.log1p(-1 / num_words) * (n - c)
    weights = np.exp(log_choices + log_odds)
    return float(math.log(n) - num_words / n * (weights @ (c * np.log(c))))


def _corner_entropy(noise_std: float, *, is_truncated: bool) -> float:
    """h of one coordinate of the cube's mixture with noise."""
    from scipy.special import ndtr

    total = math.hypot(COMPONENT_STD, noise_std)
    slope = COMPONENT_STD / noise_std / total

    def density(t: Floats) -> Floats:
        if not is_truncated:
            return 0.5 * (_normal(t - 1, total) + _normal(t + 1, total))
        # 1 - |U| + Z is skew normal; the other side is its mirror image.
        right: Any = _normal(t - 1, total) * ndtr(-slope * (t - 1))
        left: Any = _normal(t + 1, total) * ndtr(slope * (t + 1))
        return np.asarray(right + left)

    return _entropy_of(density, total)


def _entropy_of(density: Callable[[Floats], Floats], std: float) -> float:
    """-int p log p over [-1, 1] and 12 standard deviations more on either side."""
    step = std / 100
    t = np.arange(-1 - 12 * std, 1 + 12 * std, step)
    p = density(t)
    return float(-step * (p * np.log(np.where(p > 0, p, 1))).sum())


def _normal(t: Floats, std: float) -> Floats:
    """Density of N(0, std^2)."""
    return np.asarray(np.exp(-0.5 * (t / std) ** 2) / (math.sqrt(2 * math.pi) * std))
