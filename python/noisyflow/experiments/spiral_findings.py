"""What the spiral's run found: figures, and what they show of the paper's statements.

Everything here reads the rows of a finished run; the trained network is used to draw
what it does.
"""

from __future__ import annotations

import numpy as np
import torch

from noisyflow import datasets, plotting
from noisyflow.experiments import Claim, estimator_findings, spiral_layer
from noisyflow.experiments.estimator_findings import KERNELS, NEIGHBORS, OURS
from noisyflow.experiments.known_sources import Source
from noisyflow.experiments.measured import Measured, is_above, over_seeds
from noisyflow.experiments.verdicts import counts
from noisyflow.report import Figure
from noisyflow.runs import RunFolder

Study = estimator_findings.Study

# The paper's figure 6, read by eye: true entropy; the plug-in has it at this n, nearest
# neighbours at this one; kernel densities stay so far below it. How many samples a
# method needs depends on that entropy, and that on data and training, neither of which
# the paper gives: of another network these say neither yes nor no.
_LEVEL, _READING_ERROR = 0.2, 0.1
_PLUG_IN_AT, _NEIGHBORS_AT = 500, 2000
_KERNELS_OFF = 1.0
_OTHER_NETWORK = (
    "the paper does not give the data and the training that this depends on, and the "
    "network here is another"
)
_GRID = 300
_DRAWS = 4  # of the noise, for the picture of the layer


def opening(study: Study) -> list[str]:
    """What the paper says, and what was found."""
    source = _source(study)
    _, error = study.prepared["spiral.reference"]
    n = study.num_samples(source)[-1]
    off = {
        method: study.column(source, n, method=method).mean() - source.entropy
        for method in (OURS, NEIGHBORS, KERNELS)
    }
    return [
        "The paper (Goldfeld, Greenewald, Polyanskiy 2018, figure 6) says that the "
        "plug-in finds the entropy of the third layer of a noisy network, trained on a "
        "spiral, from a few hundred samples, that nearest neighbours need more and "
        "that kernel densities miss it. Found: the entropy is "
        f"{source.entropy:.3f} ± {error:.3f} nats; at n = {n} the mean error of "
        + ", ".join(f"{name} is {value:+.3f}" for name, value in off.items())
        + ".",
        "The network 2-8-9-10-3 has tanh layers with noise 0.2 and was trained to "
        f"{100 * float(study.prepared['spiral.accuracy']):.1f} % in "
        f"{int(study.prepared['spiral.passes'])} passes. The paper gives neither its "
        "data nor its training, on which the level of the entropy depends. All methods "
        "see the same samples, noisyflow those of S, the others with noise added.",
    ]


def _source(study: Study) -> Source:
    (source,) = study.of_family("spiral")
    return source


def plot(study: Study, folder: RunFolder, seed: int) -> list[Figure]:
    """Makes all figures of a run in its folder.

    Parameters
    ----------
    study : Study
    folder : RunFolder
    seed : int
        Of the spiral, and of the noise in the picture of the layer.

    Returns
    -------
    list of Figure
        Files and captions, in the order of the report.
    """
    curves = estimator_findings.curves_figure(study, [_source(study)])
    share, figure = _network_figure(study, seed)
    return [
        Figure(
            folder.save_figure("entropy.png", curves),
            "Entropy of the third layer against the number of samples, and root mean "
            "square errors. Points: mean over repetitions; bars: their standard "
            "deviation; shaded: the bracket of noisyflow, as far as the axes reach. "
            "Dashed: the reference, to the precision stated below.",
        ),
        Figure(
            folder.save_figure("network.png", figure),
            "Left: the spiral's points, and the class that the network decides for "
            f"without noise. Right: the third layer's clean outputs, {_DRAWS} draws of "
            "the noise before it for each point, along the two directions of largest "
            f"variance ({100 * share:.0f} % of it): the classes lie apart for the most "
            "part, each with dense places and points scattered between them.",
        ),
    ]


@torch.no_grad()
def _network_figure(study: Study, seed: int) -> tuple[float, bytes]:
    """The network's decisions and its third layer; with the variance shown of it."""
    network = spiral_layer.trained(study.prepared).eval()
    data = datasets.spiral(seed=seed)
    axis = np.linspace(-1.15, 1.15, _GRID)
    grid = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    logits = network(torch.as_tensor(grid, dtype=torch.float32))
    regions = logits.argmax(dim=1).numpy().reshape(_GRID, _GRID)
    clean = network.clean_outputs(torch.from_numpy(data.inputs), _DRAWS, seed=seed)[2]
    layer = clean.reshape(-1, clean.shape[-1]).double().numpy()
    centred = layer - layer.mean(axis=0)
    _, lengths, directions = np.linalg.svd(centred, full_matrices=False)
    share = float((lengths[:2] ** 2).sum() / (lengths**2).sum())
    figure, (left, right) = plotting.new_figure(13, 6, columns=2)
    plotting.decision_regions(left, axis, axis, regions, data.inputs, data.labels)
    left.set_xlabel("first input", fontsize=13)
    left.set_ylabel("second input", fontsize=13)
    plotting.class_scatter(
        right, centred @ directions[:2].T, np.repeat(data.labels, _DRAWS)
    )
    right.set_xlabel("first direction of the third layer", fontsize=13)
    right.set_ylabel("second direction", fontsize=13)
    right.set_aspect("equal", adjustable="datalim")
    plotting.legend_above(figure, [left])
    return share, plotting.png(figure)


def claims(study: Study) -> list[Claim]:
    """What the paper's figure shows, checked.

    Parameters
    ----------
    study : Study

    Returns
    -------
    list of Claim
    """
    source = _source(study)
    numbers = study.num_samples(source)
    _, error = study.prepared["spiral.reference"]
    return [
        Claim(
            f"The entropy is about {_LEVEL:g} nats (within {_READING_ERROR:g}, read by "
            "eye).",
            f"{source.entropy:.4f} ± {error:.4f}"
            + ("" if _is_comparable(study) else f": {_OTHER_NETWORK}"),
            True if _is_comparable(study) else None,
        ),
        _reaches(study, OURS, "The plug-in", _PLUG_IN_AT),
        _reaches(study, NEIGHBORS, "Nearest neighbours", _NEIGHBORS_AT),
        _kernels(study, numbers[-1]),
        estimator_findings.dominance(study, source),
    ]


def checks(study: Study) -> list[Claim]:
    """What must be so whatever the paper says: the measurement is checked.

    Parameters
    ----------
    study : Study

    Returns
    -------
    list of Claim
    """
    return [
        estimator_findings.spiral_claim(study),
        estimator_findings.plug_in_rises(study),
        estimator_findings.brackets(study),
    ]


def _is_comparable(study: Study) -> bool | None:
    """Whether the entropy is the paper's, by two errors."""
    _, error = study.prepared["spiral.reference"]
    apart = abs(_source(study).entropy - _LEVEL)
    return is_above(-apart, 2 * float(error), -_READING_ERROR)


def _reaches(study: Study, method: str, words: str, at: int) -> Claim:
    """Whether a method has the value at about the paper's number of samples."""
    source = _source(study)
    numbers = study.num_samples(source)
    n = next((number for number in numbers if number >= at), numbers[-1])
    off = over_seeds(study.column(source, n, method=method) - source.entropy)
    distance = Measured(abs(off.mean), off.error)
    is_tried = n >= at and _is_comparable(study)
    return Claim(
        f"{words}: the value is reached from about n = {at} on (mean error within "
        f"{_READING_ERROR:g} nats, read by eye; looked at n = {n}).",
        f"mean error {off.mean:+.3f} ± {off.error:.3f} nats"
        + ("" if _is_comparable(study) else f": {_OTHER_NETWORK}"),
        distance.is_below(_READING_ERROR) if is_tried else None,
    )


def _kernels(study: Study, n: int) -> Claim:
    """Whether kernel densities are as wrong as in the paper."""
    source = _source(study)
    off = over_seeds(study.column(source, n, method=KERNELS) - source.entropy)
    return Claim(
        f"Kernel densities stay more than {_KERNELS_OFF:g} nats below at n = 100,000.",
        f"at n = {n}: mean error {off.mean:+.3f} ± {off.error:.3f} nats",
        off.is_below(-_KERNELS_OFF) if n >= 100_000 else None,
    )


def summary(study: Study) -> str:
    """The end of the run in a few lines."""
    source = _source(study)
    n = study.num_samples(source)[-1]
    off = study.column(source, n) - source.entropy
    return (
        f"spiral: entropy {source.entropy:.4f} nats; error of noisyflow at n = {n}: "
        f"{off.mean():+.4f}\n"
        f"  {counts(claims(study), checks(study))}"
    )
