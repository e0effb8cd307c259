"""Measures of representations against their formulas and against brute force."""

from __future__ import annotations

import itertools
import math

import matplotlib.colors
import numpy as np
import pytest
import scipy.cluster.hierarchy
import scipy.spatial.distance
import torch

from noisyflow import entropy, plotting
from noisyflow import representations as measures
from noisyflow.representations import (
    class_distances,
    cosine_similarity,
    effective_clusters,
    num_clusters,
    single_linkage,
)

# -- distances ----------------------------------------------------------------


def brute_distances(
    samples: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Distances of all pairs of one class, and of all of two."""
    pairs = list(itertools.combinations(range(len(samples)), 2))
    within = [(i, j) for i, j in pairs if labels[i] == labels[j]]
    between = [(i, j) for i, j in pairs if labels[i] != labels[j]]
    return tuple(
        np.array([math.dist(samples[i], samples[j]) for i, j in kind])
        for kind in (within, between)
    )  # type: ignore[return-value]


def test_distances_of_all_pairs_are_those_of_two_loops(
    rng: np.random.Generator, dtype: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measures, "_CHUNK_NUMBERS", 100)  # many chunks
    samples = rng.normal(size=(40, 3)).astype(dtype)
    labels = rng.integers(0, 3, 40)
    found = class_distances(samples, labels, num_bins=7)
    within, between = brute_distances(samples.astype(np.float64), labels)

    assert (found.num_within, found.num_between) == (len(within), len(between))
    assert found.mean_within == pytest.approx(within.mean(), rel=1e-12)
    assert found.mean_between == pytest.approx(between.mean(), rel=1e-12)
    assert found.ratio == pytest.approx(within.mean() / between.mean(), rel=1e-12)
    assert found.edges[0] == 0
    assert found.edges[-1] == pytest.approx(max(within.max(), between.max()))
    for shares, distances in ((found.within, within), (found.between, between)):
        # The largest distance is an edge, and rounding decides on which side it is.
        edges = np.append(found.edges[:-1], np.inf)
        counts, _ = np.histogram(distances, edges)
        np.testing.assert_allclose(shares, counts / len(distances), rtol=1e-12)


def test_errors_of_distances_are_the_jackknife_that_leaves_out_each_point(
    rng: np.random.Generator,
) -> None:
    samples, labels = rng.normal(size=(12, 2)), np.arange(12) % 3
    found = class_distances(samples, labels)
    again = []
    for left_out in range(12):
        keep = np.arange(12) != left_out
        within, between = brute_distances(samples[keep], labels[keep])
        again.append((within.mean(), between.mean(), within.mean() / between.mean()))
    expected = np.sqrt(11 / 12 * ((again - np.mean(again, axis=0)) ** 2).sum(axis=0))

    errors = (found.within_error, found.between_error, found.ratio_error)
    np.testing.assert_allclose(errors, expected, rtol=1e-9)


def test_errors_of_distances_are_the_spread_over_repetitions(
    rng: np.random.Generator,
) -> None:
    """Of all pairs, and of so few that their choice is most of the spread.

    The jackknife is on average not too small; where the choice of pairs is all there
    is, it is the larger by a factor of sqrt(2) (each pair is with two points). The
    spread of 300 repetitions is itself known to 4 %: within three of these.
    """
    for max_pairs in (10**6, 200):
        found = []
        for seed in range(300):
            labels = np.arange(60) % 2
            samples = rng.normal(size=(60, 2)) + labels[:, None]
            found.append(
                class_distances(samples, labels, max_pairs=max_pairs, seed=seed)
            )
        for mean, error in (
            ("mean_within", "within_error"),
            ("mean_between", "between_error"),
            ("ratio", "ratio_error"),
        ):
            spread = np.std([getattr(one, mean) for one in found], ddof=1)
            typical = np.sqrt(np.mean([getattr(one, error) ** 2 for one in found]))
            assert 0.88 < typical / spread < 1.12 * math.sqrt(2), (max_pairs, mean)


def test_a_choice_of_pairs_is_of_different_pairs_and_spread_over_all(
    rng: np.random.Generator,
) -> None:
    """Points on a line at powers of two: every pair has a distance of its own."""
    samples, labels = 2.0 ** np.arange(20)[:, None], np.arange(20) % 2
    within, between = brute_distances(samples, labels)
    seen: list[float] = []
    for seed in range(40):
        found = class_distances(samples, labels, max_pairs=60, seed=seed)
        assert (found.num_within, found.num_between) == (30, 30)
        seen.append(found.mean_within)
    # 40 means of 30 of 90 pairs, drawn without replacement.
    deviation = within.std(ddof=1) * math.sqrt((1 / 30 - 1 / 90) / 40)
    assert abs(np.mean(seen) - within.mean()) < 4 * deviation
    assert len(set(seen)) == 40
    # All but one of the pairs: of different ones, the sum lacks one distance.
    found = class_distances(samples, labels, max_pairs=2 * 89)
    missing = within.sum() - 89 * found.mean_within
    assert np.abs(within - missing).min() < 1e-6 * missing
    found = class_distances(samples, labels, max_pairs=2 * 99)
    missing = between.sum() - 99 * found.mean_between
    assert np.abs(between - missing).min() < 1e-6 * missing


def test_distances_at_the_edges() -> None:
    labels = np.array(["a", "a", "b", "c"])
    few = class_distances(np.array([[0.0], [1.0], [3.0], [4.0]]), labels)
    assert few.within_error == math.inf  # without a point there is no pair left
    assert few.ratio_error == math.inf
    assert math.isfinite(few.between_error)
    same = class_distances(torch.zeros(6, 2), np.arange(6) % 2)
    assert (same.mean_within, same.mean_between) == (0, 0)
    assert math.isnan(same.ratio)
    assert same.within[0] == 1
    collapsed = class_distances(np.arange(6.0)[:, None] % 2, np.arange(6) % 2)
    assert collapsed.ratio == 0
    assert collapsed.within_error == 0


@pytest.mark.parametrize("unit", [1e-300, 1e-170, 1e170, 1e300])
def test_distances_have_the_unit_of_the_samples(
    rng: np.random.Generator, unit: float
) -> None:
    samples, labels = rng.normal(size=(40, 3)), np.arange(40) % 3
    expected = class_distances(samples, labels, num_bins=7)
    found = class_distances(unit * samples, labels, num_bins=7)
    for name in ("mean_within", "mean_between", "within_error", "between_error"):
        assert getattr(found, name) == pytest.approx(
            unit * getattr(expected, name), rel=1e-12, abs=0
        )
    np.testing.assert_allclose(found.edges, unit * expected.edges, rtol=1e-12)
    np.testing.assert_array_equal(found.within, expected.within)
    assert found.ratio == pytest.approx(expected.ratio)
    assert found.ratio_error == pytest.approx(expected.ratio_error)


@pytest.mark.parametrize(
    ("samples", "labels", "settings", "message"),
    [
        (np.zeros(3), [0, 0, 1], {}, r"shape \(n, d\)"),
        (np.array([[np.nan], [0.0]]), [0, 1], {}, "finite"),
        (np.zeros((3, 1)), [0, 1], {}, r"shape \(3,\)"),
        (np.zeros((3, 1)), [1, 1, 1], {}, "two classes"),
        (np.zeros((3, 1)), [0, 1, 2], {}, "two points"),
        (np.zeros((3, 1)), [0, 0, 1], {"max_pairs": 1}, "max_pairs"),
        (np.zeros((3, 1)), [0, 0, 1], {"num_bins": 0}, "num_bins"),
        (np.array([[-1e308], [1e308], [1.0]]), [0, 0, 1], {}, "finite distances"),
    ],
)
def test_bad_input_of_distances_is_named(
    samples: np.ndarray, labels: list[int], settings: dict[str, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        class_distances(samples, labels, **settings)


# -- similarity ---------------------------------------------------------------


def test_cosines_are_those_of_scipy(rng: np.random.Generator) -> None:
    first, second = rng.normal(size=(2, 20, 3, 4))
    expected = [
        1 - scipy.spatial.distance.cosine(a.ravel(), b.ravel())
        for a, b in zip(first, second, strict=True)
    ]
    found = cosine_similarity(torch.from_numpy(first), second.astype(np.float64))
    np.testing.assert_allclose(found, expected, atol=1e-14)


def test_cosines_do_not_depend_on_lengths(rng: np.random.Generator) -> None:
    """Nor overflow, nor leave [-1, 1]."""
    x = rng.normal(size=(1000, 7))
    for factor, expected in ((1e300, 1.0), (-1e-300, -1.0)):
        found = cosine_similarity(x, factor * x)
        assert np.abs(found).max() <= 1
        np.testing.assert_allclose(found, expected, atol=1e-14)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (np.ones(3), np.ones(3), r"first must have shape \(m, ...\)"),
        (np.ones((3, 2)), np.ones((3, 3)), "same shape"),
        (np.ones((3, 2)), np.array([[1.0, 1], [0, 0], [1, 1]]), r"second .* at \[1\]"),
        (np.full((1, 2, 2), np.inf), np.ones((1, 2, 2)), r"finite.*\[0, 0, 0\]"),
    ],
)
def test_bad_input_of_cosines_is_named(
    first: np.ndarray, second: np.ndarray, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        cosine_similarity(first, second)


# -- clusters -----------------------------------------------------------------


def brute_clusters(samples: np.ndarray, scale: float) -> np.ndarray:
    """Single linkage as scipy has it, cut at the scale."""
    tree = scipy.cluster.hierarchy.linkage(samples, "single")
    found = scipy.cluster.hierarchy.fcluster(tree, scale, "distance")
    _, first, clusters = np.unique(found, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[clusters]


@pytest.mark.parametrize("d", [1, 2, 3, 5, 20])
@pytest.mark.parametrize("kind", ["scattered", "blobs", "grid", "chain", "far"])
def test_clusters_are_those_of_brute_force(
    kind: str, d: int, rng: np.random.Generator
) -> None:
    """With scales from one pair of points to all, none of them a distance itself."""
    samples = {
        "scattered": lambda: rng.normal(size=(250, d)),
        "blobs": lambda: (
            rng.integers(0, 4, (250, 1)) * 3.0 + 0.01 * rng.normal(size=(250, d))
        ),
        "grid": lambda: rng.integers(-3, 3, (250, d)) / 4,  # many coincide
        "chain": lambda: np.cumsum(rng.exponential(size=(250, d)), axis=0),
        "far": lambda: rng.normal(size=(250, d)) + 1e7,
    }[kind]()
    distances = np.unique(scipy.spatial.distance.pdist(samples))
    gaps = np.flatnonzero(np.diff(distances) > 1e-6 * distances[1:])
    for share in (0.0, 0.003, 0.02, 0.1, 0.5, 0.99):
        gap = gaps[int(share * len(gaps))]
        scale = float(distances[gap : gap + 2].mean())
        expected = brute_clusters(samples, scale)
        np.testing.assert_array_equal(single_linkage(samples, scale), expected)
        assert num_clusters(samples, scale) == expected.max() + 1


@pytest.mark.parametrize("link", ["_linked_by_trees", "_linked_by_all_pairs"])
def test_both_ways_to_link_agree_with_brute_force_at_every_scale(
    link: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where clusters are joined one by one, few neighbours asked for, many chunks."""
    monkeypatch.setattr(measures, "_NUM_NEIGHBOURS", 2)
    monkeypatch.setattr(measures, "_CHUNK_NUMBERS", 500)
    for d in (2, 4):
        samples = rng.normal(size=(60, d))
        heights = scipy.cluster.hierarchy.linkage(samples, "single")[:, 2]
        for number, scale in enumerate((heights[1:] + heights[:-1]) / 2, start=1):
            found = getattr(measures, link)(samples, scale)
            assert len(np.unique(found)) == 60 - number
            assert len(np.unique(found * 60 + brute_clusters(samples, scale))) == (
                60 - number
            )


def test_points_exactly_the_scale_apart_are_linked() -> None:
    for d in (1, 3, 15):
        steps = np.arange(8.0)[:, None] * np.eye(d)[0]
        assert num_clusters(steps, 1.0) == 1
        assert num_clusters(steps, math.nextafter(1.0, 0.0)) == 8


def test_many_points_merged_into_blobs_are_as_many_clusters(
    rng: np.random.Generator,
) -> None:
    """100,000 points of which all pairs in a blob are links: 10^9 of them."""
    corners = np.array(list(itertools.product((-1.0, 1.0), repeat=3)))
    which = rng.integers(0, 8, 100_000)
    samples = corners[which] + 1e-3 * rng.normal(size=(100_000, 3))
    found = single_linkage(samples, 0.1)
    assert found.max() == 7
    assert len(np.unique(8 * found + which)) == 8


def test_rounding_decides_no_link_in_many_dimensions() -> None:
    """Squares of the norms are 4e14 times those of the distances."""
    offset = np.full((1, 40), 1e6)
    samples = offset + 0.5 * np.arange(30.0)[:, None] * np.eye(40)[0]
    assert num_clusters(samples, 0.5) == 1
    assert num_clusters(samples, 0.4999) == 30


def test_no_cell_holds_points_that_only_rounding_puts_there() -> None:
    """Neighbouring numbers, 256 apart, whose quotients by the scale are equal."""
    samples = 2.0**61 - 256 * np.arange(10.0)[:, None]
    assert num_clusters(samples, 253.0) == 10
    assert num_clusters(samples, 256.0) == 1


def test_clusters_of_tensors_and_of_one_point() -> None:
    assert num_clusters(torch.tensor([[0.0, 1.0]]), 0.1) == 1
    assert num_clusters(torch.tensor([[0.0], [1.0], [1.0]]), 0.1) == 2


@pytest.mark.parametrize(
    ("samples", "scale", "error", "message"),
    [
        (np.zeros((2, 1)), 0.0, ValueError, "scale must be positive"),
        (np.zeros((2, 1)), math.nan, ValueError, "scale must be finite"),
        (np.zeros((2, 1)), 1e-200, ValueError, "rescale"),
        (np.zeros((2, 1)), "1", TypeError, "scale"),
        (np.array([[np.inf]]), 1.0, ValueError, "finite"),
        (np.zeros(4), 1.0, ValueError, r"shape \(n, d\)"),
        (np.zeros((4, 1), int), 1.0, TypeError, "float32 or float64"),
    ],
)
def test_bad_input_of_clusters_is_named(
    samples: np.ndarray, scale: float, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        num_clusters(samples, scale)


# -- effective number of clusters ---------------------------------------------


def test_symbols_well_apart_count_by_the_exponential_of_their_entropy() -> None:
    masses = np.array([1, 2, 5, 8])
    samples = np.repeat(np.eye(4), masses, axis=0)
    p = masses / masses.sum()
    expected = math.exp(-(p * np.log(p)).sum())
    found = effective_clusters(samples, 0.02)
    assert found.value == pytest.approx(expected, rel=1e-6)
    assert found.lower == pytest.approx(expected, rel=1e-6)
    assert found.upper == pytest.approx(expected, rel=1e-6)
    assert effective_clusters(samples[:1], 0.02).value == 1
    assert effective_clusters(samples, 100.0).value == pytest.approx(1, abs=1e-4)


def test_effective_clusters_are_the_exponential_of_entropy_less_that_of_the_noise(
    rng: np.random.Generator,
) -> None:
    samples = torch.from_numpy(rng.normal(size=(50, 2)))
    found = effective_clusters(samples, 0.5)
    whole = entropy(samples, 0.5, population=True, seed=1)
    information = whole.value - math.log(2 * math.pi * math.e * 0.25)
    errors = math.hypot(found.standard_error, found.value * whole.standard_error)
    assert abs(found.value - math.exp(information)) < 4 * errors + 1e-6
    assert found.standard_error == found.value * found.information.standard_error
    more = rng.normal(size=(500, 2))
    sampled = effective_clusters(more, 0.5, inputs="sampled")
    # S and Z are normal: I = log(1 + 1 / 0.5^2), and the bracket is open above.
    assert sampled.value < sampled.upper
    assert sampled.lower - 4 * sampled.standard_error < 5
    assert sampled.upper + 4 * sampled.standard_error > 5
    assert sampled.upper == pytest.approx(math.exp(sampled.information.upper))


def test_bad_input_of_effective_clusters_is_named() -> None:
    with pytest.raises(ValueError, match=r"shape \(n, d\)"):
        effective_clusters(np.zeros((2, 1, 1)), 1.0)
    with pytest.raises(ValueError, match="noise_std must be positive"):
        effective_clusters(np.zeros((2, 1)), -1.0)
    with pytest.raises(ValueError, match="detach"):
        effective_clusters(torch.zeros(2, 1, requires_grad=True), 1.0)


# -- figures ------------------------------------------------------------------


@pytest.mark.parametrize("d", [1, 2, 3])
def test_a_constellation_shows_masses_classes_and_noise(d: int) -> None:
    """Three coinciding inputs of one class and one of another, apart."""
    points = np.array([[0.0], [0.001], [0.0], [1.0]]) * np.ones(d)
    figure, (axes,) = plotting.new_figure(4, 4, projection="3d" if d == 3 else None)
    same = plotting.constellation(axes, points, 0.1, labels=["b", "b", "b", "a"])
    assert same is axes
    plotting.png(figure)
    names = [text for text in axes.get_legend_handles_labels()[1]]
    assert names == ["label a", "label b"]
    dots = next(one for one in axes.collections if len(one.get_offsets()) == 2)
    areas = np.sort(dots.get_sizes()) - 10
    assert areas[1] / areas[0] == pytest.approx(3)
    if d == 1:  # each class has the area of its share
        for line, share in zip(axes.lines, (0.25, 0.75), strict=True):
            x, y = line.get_data()
            assert np.trapezoid(y, x) == pytest.approx(share, abs=0.003)
    if d == 2:
        discs = axes.collections[0]
        np.testing.assert_allclose(discs._widths, 0.1)  # half of them
        faces = [
            matplotlib.colors.to_hex(c.get_edgecolor()[0]) for c in axes.collections[:2]
        ]
        assert len(set(faces)) == 2


@pytest.mark.parametrize(
    ("points", "noise_std", "labels", "message"),
    [
        (np.zeros((2, 4)), 0.1, None, r"\(m, 3\) and not be empty, got \(2, 4\)"),
        (np.zeros((0, 2)), 0.1, None, r"not be empty, got \(0, 2\)"),
        (np.full((2, 2), np.nan), 0.1, None, "points must be finite"),
        (np.zeros((2, 2)), 0.0, None, "noise_std must be positive and finite, got 0"),
        (
            np.zeros((2, 2)),
            0.1,
            [1],
            r"per point, shape \(2,\), got .*\(1,\)",
        ),
        (np.zeros((2, 2)), 0.1, [[0, 1], [1, 1]], r"got shape \(2, 2\)"),
    ],
)
def test_bad_input_of_a_constellation_is_named(
    points: np.ndarray, noise_std: float, labels: object, message: str
) -> None:
    _, (axes,) = plotting.new_figure(4, 4)
    with pytest.raises(ValueError, match=message):
        plotting.constellation(axes, points, noise_std, labels=labels)


def test_histograms_show_the_numbers_they_are_given() -> None:
    _, (first, second) = plotting.new_figure(6, 3, columns=2)
    distances = class_distances(np.array([[0.0], [0.2], [2.0], [2.2]]), [0, 0, 1, 1])
    plotting.distance_histograms(first, distances, title="distances")
    drawn = [patch.get_data() for patch in first.patches]
    np.testing.assert_allclose(drawn[0].values, 100 * distances.within)
    np.testing.assert_allclose(drawn[1].values, 100 * distances.between)
    assert "mean 0.2" in first.get_legend_handles_labels()[1][0]
    cosines = {"a": np.array([-0.5, 1.0]), "b": np.array([1.0, 1.0])}
    plotting.similarity_histograms(second, cosines, title="similarity")
    a, b = (patch.get_data() for patch in second.patches)
    assert a.values[[0, -1]].tolist() == [50, 50]
    assert b.values[-1] == 100
