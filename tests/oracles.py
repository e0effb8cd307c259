"""Problems with known answers, each citing its formula; entropies in nats.

Integrals are trapezoid sums over 12 noise standard deviations on either side (smooth
integrands that vanish at the ends: error far below 1e-9) or Gauss-Hermite sums. Nothing
here calls the package.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy.special import ndtr

NUM_NODES = (
    100  # of Gauss-Hermite quadrature; 60 and 100 agree to 1e-9 on these problems
)


@dataclass(frozen=True)
class Source:
    """A distribution of S with known h(S + Z), Z ~ N(0, noise_std^2 I)."""

    name: str
    num_dimensions: int
    noise_std: float
    entropy: float
    sample: Callable[[np.random.Generator, int], np.ndarray]

    def __str__(self):
        return f"{self.name}-d{self.num_dimensions}-noise{self.noise_std:g}"


def noise_entropy(d, noise_std):
    """h(Z) = (d/2) log(2 pi e noise_std^2)."""
    return 0.5 * d * np.log(2 * np.pi * np.e * noise_std**2)


def normal_density(x, noise_std):
    return np.exp(-0.5 * (x / noise_std) ** 2) / (np.sqrt(2 * np.pi) * noise_std)


def entropy_of_density(density, low, high, noise_std):
    """-int p log p over [low, high] widened by 12 noise standard deviations."""
    t = np.arange(low - 12 * noise_std, high + 12 * noise_std, noise_std / 50)
    p = density(t)
    return -np.trapezoid(p * np.log(np.where(p > 0, p, 1)), t)


def mixture_entropy_1d(levels, noise_std, weights=None):
    """h of sum_j w_j N(levels_j, noise_std^2) in one dimension, by quadrature."""
    levels = np.asarray(levels, float)
    if weights is None:
        weights = np.full(len(levels), 1 / len(levels))

    def density(t):
        return normal_density(t[:, None] - levels, noise_std) @ weights

    return entropy_of_density(density, levels.min(), levels.max(), noise_std)


def gaussian(d, std, noise_std):
    """S ~ N(0, std^2 I): h = (d/2) log(2 pi e (std^2 + noise_std^2))."""
    exact = noise_entropy(d, np.hypot(std, noise_std))
    return Source(
        *("gaussian", d, noise_std, exact),
        lambda generator, n: std * generator.standard_normal((n, d)),
    )


def constellation(name, levels, d, noise_std):
    """Independent equiprobable levels: d times the one-dimensional entropy."""
    return Source(
        *(name, d, noise_std, d * mixture_entropy_1d(levels, noise_std)),
        lambda generator, n: generator.choice(np.asarray(levels, float), (n, d)),
    )


def bpsk_cube(d, noise_std):
    return constellation("bpsk", (-1, 1), d, noise_std)


def four_pam(d, noise_std):
    return constellation("4-pam", (-3, -1, 1, 3), d, noise_std)


def uniform_cube(d, noise_std):
    """S uniform on [-1, 1]^d: the density factors into (Phi(t+1) - Phi(t-1)) / 2."""

    def density(t):
        return 0.5 * (ndtr((t + 1) / noise_std) - ndtr((t - 1) / noise_std))

    exact = d * entropy_of_density(density, -1, 1, noise_std)
    return Source(
        *("uniform", d, noise_std, exact),
        lambda generator, n: generator.uniform(-1, 1, (n, d)),
    )


def sources():
    """Dimensions 1 to 10, from no bias to speak of to a wide bracket."""
    return [
        *(gaussian(d, 1.0, noise) for d, noise in product((1, 2, 5, 10), (0.5, 2.0))),
        *(bpsk_cube(d, noise) for d, noise in product((1, 3, 6, 10), (0.4, 1.0))),
        *(four_pam(d, noise) for d, noise in product((1, 2, 4), (0.5, 1.0))),
        *(uniform_cube(d, noise) for d, noise in product((1, 3, 5, 10), (0.3, 1.0))),
    ]


def cube_corners(d):
    """All 2^d points of {-1, 1}^d."""
    return np.array(list(product((-1.0, 1.0), repeat=d)))


@dataclass(frozen=True)
class LinearGaussianNetwork:
    """X ~ N(0, I), T_2 = W_2 (W_1 X + Z_1) + Z_2, both noises N(0, noise_std^2 I).

    With C = noise_std^2 (W_2 W_2' + I) the covariance of T_2 given X and
    A = W_2 W_1 W_1' W_2' + C that of T_2: h(T_2 | X) = (1/2) log |2 pi e C| and
    I(X; T_2) = (1/2) log |A| - (1/2) log |C|.
    """

    first: np.ndarray
    second: np.ndarray
    noise_std: float

    def samples(self, generator, num_inputs, num_draws):
        """S_2 before its noise, (num_inputs, num_draws, d)."""
        x = generator.standard_normal((num_inputs, 1, self.first.shape[1]))
        shape = (num_inputs, num_draws, self.first.shape[0])
        hidden = x @ self.first.T + self.noise_std * generator.standard_normal(shape)
        return hidden @ self.second.T

    @property
    def conditional_covariance(self):
        gram = self.second @ self.second.T
        return self.noise_std**2 * (gram + np.eye(len(gram)))

    @property
    def conditional_entropy(self):
        covariance = 2 * np.pi * np.e * self.conditional_covariance
        return 0.5 * np.linalg.slogdet(covariance)[1]

    @property
    def information(self):
        both = self.second @ self.first
        whole = both @ both.T + self.conditional_covariance
        return 0.5 * (
            np.linalg.slogdet(whole)[1]
            - np.linalg.slogdet(self.conditional_covariance)[1]
        )


@dataclass(frozen=True)
class TanhNetwork:
    """T_2 = tanh(w_2 (tanh(w_1 X) + Z_1)) + Z_2 in one dimension."""

    first: float
    second: float
    noise_std: float

    def samples(self, generator, inputs, num_draws):
        """S_2 before its noise, (inputs, num_draws, 1)."""
        hidden = np.tanh(self.first * np.asarray(inputs, float))[:, None]
        noise = generator.standard_normal((len(hidden), num_draws))
        return np.tanh(self.second * (hidden + self.noise_std * noise))[..., None]

    def densities(self, inputs, t):
        """p(t | x), (inputs, points), Z_1 integrated out by the trapezoid rule."""
        z = np.linspace(-9, 9, 2401)
        z_weights = normal_density(z, 1) * (z[1] - z[0])
        hidden = np.tanh(self.first * np.asarray(inputs, float))[:, None]
        means = np.tanh(self.second * (hidden + self.noise_std * z))
        return np.array(
            [
                np.concatenate(
                    [
                        normal_density(some[:, None] - row, self.noise_std) @ z_weights
                        for some in np.array_split(t, 1 + len(t) // 2000)
                    ]
                )
                for row in means
            ]
        )

    def entropies(self, inputs):
        """h(T_2) and h(T_2 | X), X uniform over the inputs: Z_1 integrated out."""
        z = np.linspace(-9, 9, 1201)
        z_weights = normal_density(z, 1) * (z[1] - z[0])
        hidden = np.tanh(self.first * np.asarray(inputs, float))[:, None]
        means = np.tanh(self.second * (hidden + self.noise_std * z))
        t = np.arange(
            -1 - 9 * self.noise_std, 1 + 9 * self.noise_std, self.noise_std / 20
        )
        densities = np.array(
            [
                normal_density(t[:, None] - row, self.noise_std) @ z_weights
                for row in means
            ]
        )

        def entropy(p):
            return -np.trapezoid(p * np.log(np.where(p > 0, p, 1)), t)

        conditional = np.mean([entropy(p) for p in densities])
        return entropy(densities.mean(axis=0)), conditional

    def information(self, inputs):
        """I(X; T_2), X uniform over the inputs."""
        entropy, conditional = self.entropies(inputs)
        return entropy - conditional


@dataclass(frozen=True)
class Bracket:
    """What an estimate tends to as the noise draws of given samples become many."""

    value: float
    lower: float
    upper: float
    query_std: float  # the largest standard deviation, over queries, of the three


def bracket_1d(samples, noise_std, quantity, *, labels=None, inputs="fixed"):
    """Plug-in and leave-one-out of samples in one dimension, by Gauss-Hermite sums.

    The definitions taken literally: for every center, build each mixture as a list of
    centers and weights, with the left-out part deleted from the list.
    `quantity` is "entropy" (all samples are one block), "conditional_entropy" or
    "mutual_information".
    """
    nodes, node_weights = np.polynomial.hermite_e.hermegauss(NUM_NODES)
    node_weights = node_weights / node_weights.sum()
    blocks = [np.asarray(block, float).ravel() for block in samples]
    labels = list(range(len(blocks))) if labels is None else list(labels)

    def log_mixture(t, members):
        """members: blocks of equal weight, each a list of equally weighted centers."""
        densities = [normal_density(t[:, None] - b, noise_std).mean(1) for b in members]
        return np.log(np.mean(densities, axis=0))

    rows, weights = [], []
    for i, block in enumerate(blocks):
        group = [j for j, label in enumerate(labels) if label == labels[i]]
        for k, center in enumerate(block):
            t = center + noise_std * nodes
            other_draws = np.delete(block, k)

            def left_out(members, i=i, other_draws=other_draws):
                if inputs == "sampled":
                    return [blocks[j] for j in members if j != i]
                return [other_draws if j == i else blocks[j] for j in members]

            everyone = range(len(blocks))
            pool = log_mixture(t, blocks)
            own = log_mixture(t, [blocks[j] for j in group])
            if quantity == "entropy":
                row = (-pool, -pool, -log_mixture(t, [other_draws]))
            elif quantity == "conditional_entropy":
                row = (-own, -own, -log_mixture(t, [other_draws]))
            else:
                has_no_labels = len(set(labels)) == len(blocks)
                own_left_out = log_mixture(
                    t, [other_draws] if has_no_labels else left_out(group)
                )
                pool_left_out = log_mixture(t, left_out(everyone))
                row = (own - pool, own_left_out - pool, own - pool_left_out)
            rows.append(np.array(row))
            weights.append(node_weights / (len(blocks) * len(block)))
    rows = np.concatenate(rows, axis=1)
    weights = np.concatenate(weights)
    means = rows @ weights
    variances = (rows - means[:, None]) ** 2 @ weights
    return Bracket(*means, query_std=float(np.sqrt(variances.max())))
