"""Digits: noisy, deterministic and dropout networks side by side.

The four-layer network of Goldfeld et al. (2019), section 4.3 of the facts: two
convolutions and two linear layers, tanh, noise after every hidden activation. The arms
of one repetition start from the same weights and see the same images in the same order;
they differ in what happens after an activation: nothing, noise of some strength, or
dropout. Every network is measured with all of it off.
"""

from __future__ import annotations

import hashlib
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from noisyflow import _arrays, datasets, report
from noisyflow._checks import as_int, as_positive, as_real
from noisyflow.baselines import Binning
from noisyflow.datasets import ImageDataset, ImageFileError, TrainTest
from noisyflow.experiments.cells import CellRows, CellTable
from noisyflow.experiments.mnist_findings import (
    ANOTHER_SEED,
    BIN_WIDTHS,
    DETERMINISTIC,
    JUDGED_WIDTH,
    NUM_LAYERS,
    Study,
    caution,
    claims,
    clustering_table,
    difference_table,
    error_table,
    opening,
    plot,
    similarity_table,
    summary,
    work_rows,
)
from noisyflow.nn import GaussianNoise
from noisyflow.representations import class_distances, cosine_similarity
from noisyflow.runs import Row, RunError, RunFolder, check_device
from noisyflow.runtime import check_device_name
from noisyflow.training import one_thread

__all__ = ["Config", "claims", "configure", "plot", "run"]

# The arrays of the cells up to one, whoever computed them.
ArraysAfter = Callable[[int], Mapping[str, NDArray[Any]]]

_STREAM = 0x6D6E6973  # "mnis": apart from numbers drawn elsewhere with the same seed

_CHANNELS = (16, 32)
_UNITS = 128
_KERNEL = 5
_BATCH = 32
# Images whose representations are measured: of the test part, so that no network has
# learned them, and few enough for all pairs of them.
_NUM_MEASURED = 500
# Of distances between representations, of thousands of units each.
_MOST_DISTANCES = 10_000
_MOST_DISTANCE_NUMBERS = 1024 * 10_000  # of larger layers fewer pairs
_NUM_LOGS = 6  # beside the network before training
# Of a forward pass without gradients.
_MOST_IMAGES = 1000


@dataclass(frozen=True)
class Config:
    """Settings of one run.

    Parameters
    ----------
    noise_stds : tuple of float
        Noise of the noisy networks, in the units of tanh; positive, increasing.
    dropout : float
        Probability with which the dropout network leaves out a unit; between 0 and 1.
    num_seeds : int
        Trainings of every kind of network, at least 2. The same seed means the same
        initial weights and the same order of the images, whatever the network.
    epochs : int
        Passes over the training images, at least 1. The paper has 128, of 40 times as
        many images, and 8 seeds: the seeds, which decide how small a change shows, are
        kept, and the epochs fewer for time.
    learning_rate, momentum : float
        Of stochastic gradient descent in batches of 32. The paper has 0.005; of a
        momentum nothing is known.
    data : str or None
        Folder with MNIST's IDX files; scikit-learn's digits of 8 x 8 pixels without it.
    seed : int
        Decides all random numbers; in [0, 2**63).
    device : str
        Where networks are trained: cpu, cuda, cuda:1, ...

    Raises
    ------
    TypeError, ValueError
        If a setting is not allowed.
    """

    noise_stds: tuple[float, ...] = (0.05, 0.1, 0.2, 0.5)
    dropout: float = 0.2
    num_seeds: int = 8
    epochs: int = 48
    learning_rate: float = 0.005
    momentum: float = 0.9
    data: str | None = None
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        whole = {
            "num_seeds": (2, 1000),
            "epochs": (1, 100_000),
            "seed": (0, 2**63 - 1),
        }
        for name, (low, high) in whole.items():
            value = as_int(name, getattr(self, name), at_least=low, at_most=high)
            object.__setattr__(self, name, value)
        for name in ("dropout", "momentum"):
            share = as_real(name, getattr(self, name))
            if not 0 <= share < 1 or (name == "dropout" and share == 0):
                raise ValueError(f"{name} must be between 0 and 1, got {share:g}")
            object.__setattr__(self, name, share)
        rate = as_positive("learning_rate", self.learning_rate)
        object.__setattr__(self, "learning_rate", rate)
        if not isinstance(self.noise_stds, tuple | list):
            raise TypeError(
                f"noise_stds must be a list of numbers, got {self.noise_stds!r}"
            )
        noise_stds = tuple(_arrays.check_noise_std(std) for std in self.noise_stds)
        if not noise_stds or list(noise_stds) != sorted(set(noise_stds)):
            raise ValueError(
                f"noise_stds must increase, at least one, got {noise_stds}"
            )
        object.__setattr__(self, "noise_stds", noise_stds)
        if self.data is not None:
            if not isinstance(self.data, str | Path):
                raise TypeError(
                    f"data must be a folder's name, got {type(self.data).__name__}"
                )
            object.__setattr__(self, "data", str(self.data))
        object.__setattr__(self, "device", check_device_name(self.device))


@dataclass(frozen=True)
class Arm:
    """A kind of network."""

    name: str
    noise_std: float = 0.0
    dropout: float = 0.0


@dataclass(frozen=True)
class Cell:
    """One training."""

    arm: Arm
    repetition: int

    @property
    def name(self) -> str:
        """For the progress line."""
        return f"{self.arm.name}, seed {self.repetition}"

    @property
    def cost(self) -> float:
        """About in proportion to its seconds."""
        return 1.0 if self.arm.name == DETERMINISTIC else 1.2


class Dropout(torch.nn.Module):
    """Leaves out units in training mode, by a generator of its own."""

    def __init__(self, probability: float, *, seed: int) -> None:
        super().__init__()
        self._probability = probability
        self._seed = seed
        self._generator: torch.Generator | None = None

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Inputs with some set to zero and the rest scaled up; all of them in eval."""
        if not self.training:
            return inputs
        if self._generator is None:
            self._generator = torch.Generator(inputs.device).manual_seed(self._seed)
        draws = torch.rand(
            inputs.shape, generator=self._generator, device=inputs.device
        )
        return inputs * (draws >= self._probability) / (1 - self._probability)


class Network(torch.nn.Module):
    """Two convolutions, two linear layers; batch normalisation, tanh, then the arm's.

    Each convolution is followed by pooling over 2 x 2 pixels, after the noise.
    """

    def __init__(
        self, shape: tuple[int, int, int], num_classes: int, arm: Arm, seed: int
    ) -> None:
        super().__init__()
        words = np.random.SeedSequence(seed).generate_state(1 + NUM_LAYERS, np.uint64)
        (init_seed, *layer_seeds) = (int(word) for word in words)
        (channels, height, width) = shape
        (first, second), nn = _CHANNELS, torch.nn
        pixels = (height // 4) * (width // 4)
        padding = _KERNEL // 2
        # Layers draw weights when they are made, from torch's global generator.
        with torch.random.fork_rng(devices=[]):
            self.maps = nn.ModuleList(
                [
                    nn.Conv2d(channels, first, _KERNEL, padding=padding),
                    nn.Conv2d(first, second, _KERNEL, padding=padding),
                    nn.Linear(second * pixels, _UNITS),
                ]
            )
            self.last = nn.Linear(_UNITS, num_classes)
        self.norms = nn.ModuleList(
            [nn.BatchNorm2d(first), nn.BatchNorm2d(second), nn.BatchNorm1d(_UNITS)]
        )
        self.disturbances = nn.ModuleList(
            GaussianNoise(arm.noise_std, seed=layer_seed)
            if arm.noise_std
            else Dropout(arm.dropout, seed=layer_seed % 2**63)
            if arm.dropout
            else nn.Identity()
            for layer_seed in layer_seeds
        )
        # One by one from a generator, the same for all arms.
        generator = torch.Generator().manual_seed(init_seed)
        for layer in (*self.maps, self.last):
            nn.init.xavier_uniform_(layer.weight, generator=generator)
            nn.init.zeros_(layer.bias)

    def forward(self, images: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        """S of every hidden layer, before noise and pooling, and logits."""
        hidden, clean = images, []
        layers = zip(self.maps, self.norms, self.disturbances, strict=True)
        for number, (weights, norm, disturb) in enumerate(layers):
            if number == len(_CHANNELS):
                hidden = hidden.flatten(1)
            clean.append(torch.tanh(norm(weights(hidden))))
            hidden = disturb(clean[-1])
            if number < len(_CHANNELS):
                hidden = torch.nn.functional.max_pool2d(hidden, 2)
        return clean, self.last(hidden)


def configure(*, quick: bool = False, **settings: Any) -> Config:
    """The settings of a run: full size, or a quick version, with some replaced.

    Parameters
    ----------
    quick : bool
        Two seeds of 10 epochs: less than a minute on the small digits.
    **settings
        Fields of `Config`. With `data`, whose images are larger and more, 4 seeds of 4
        epochs unless given (quick: 2 of 1).
    """
    few: dict[str, Any] = {}
    if settings.get("data") is not None:
        few = {"num_seeds": 2, "epochs": 1} if quick else {"num_seeds": 4, "epochs": 4}
    elif quick:
        few = {"num_seeds": 2, "epochs": 10}
    return Config(**{**few, **settings})


def run(config: Config, out: Path, *, images: TrainTest | None = None) -> bool:
    """Trains all networks in an output folder, from its last checkpoint if it has one.

    Parameters
    ----------
    config : Config
    out : Path
        Created if needed. A finished run there has its figures and report made again,
        for which no images are needed.
    images : TrainTest, optional
        In place of the digits or `config.data`: images of any kind, by
        `datasets.from_torch` for instance.

    Returns
    -------
    bool
        Whether the run is finished; False after Ctrl-C.

    Raises
    ------
    RunError
        If the folder cannot be used or holds a run with other settings or on other
        images, if the device is not there, if files with images are missing or damaged,
        or if scikit-learn is not installed and no other images are given.
    ValueError
        If both `images` and `config.data` are given.

    Notes
    -----
    Full size: about 6 minutes on two quiet cores, of which one trains, at 7 seconds a
    training; several times that on busy ones. Resuming gives the same numbers bit for
    bit as not having stopped, on the same machine.
    """
    if images is not None and config.data is not None:
        raise ValueError("images and config.data must not both be given")
    check_device(config.device)
    folder = RunFolder(out)
    load = cache(partial(_load, config, images))
    table = CellTable(folder, lambda: _described(load()))
    with folder.open("mnist", asdict(config)):
        table.resume()
        cells = list(_cells(config))
        compute = None
        if table.num_done < len(cells):
            found = load()
            if not np.array_equal(_digest(found), table.prepared["digest"]):
                raise RunError(
                    f"{out} holds a run on other images than "
                    f"{config.data or 'those given'}; choose another --out"
                )
            compute = partial(_compute, config, found, table.arrays_after)
        with one_thread(torch.device(config.device)):
            is_finished = table.complete(
                "mnist", cells, compute or _no_work, _plan(config, table.prepared)
            )
        if not is_finished:
            return False
        study = Study(table.metrics, table.history, table.prepared, table.arrays)
        report.write_page(
            folder,
            "Digits: noisy, deterministic and dropout networks",
            [
                *opening(study),
                *plot(study, folder),
                *caution(study),
                report.claims_table("What the paper says", claims(study)),
                error_table(study),
                difference_table(study),
                similarity_table(study),
                clustering_table(study),
                report.settings_table(asdict(config)),
                report.work_table(folder, work_rows(study)),
            ],
        )
        print(summary(study))
        print(f"mnist: report in {folder.report}")
    return True


def _no_work(cell: Cell) -> CellRows:
    raise AssertionError("a finished run has no cells left")


def _load(config: Config, images: TrainTest | None) -> TrainTest:
    """What is learned; RunError where there is nothing to learn."""
    found = _found(config) if images is None else images
    (train, test, _) = found
    if train.shape != test.shape:
        raise RunError(
            f"images to train and to test with must have one shape, got {train.shape} "
            f"and {test.shape}"
        )
    if min(train.shape[1:]) < 4:
        raise RunError(
            "images must have at least 4 x 4 pixels, which two poolings make one, got "
            f"{train.shape[1]} x {train.shape[2]}"
        )
    try:
        datasets.check_learnable(train, test, num_train=_BATCH)
    except ValueError as error:
        raise RunError(str(error)) from error
    labels = test.labels[:_NUM_MEASURED]
    counts = np.bincount(labels)
    if len(counts[counts > 0]) < 2 or counts.max() < 2:
        raise RunError(
            "the images to test with must be of two classes, and two of one of them"
        )
    return found


def _found(config: Config) -> TrainTest:
    """The images that the settings name."""
    if config.data is not None:
        try:
            return datasets.mnist(config.data, seed=config.seed)
        except ImageFileError as error:
            raise RunError(str(error)) from error
    try:
        whole = datasets.digits()
    except ModuleNotFoundError as error:
        raise RunError(
            "the digits come with scikit-learn, which is not installed; run: pip "
            "install scikit-learn, or give --data a folder with MNIST"
        ) from error
    return TrainTest(*datasets.split(whole, seed=config.seed), is_split=True)


def _described(images: TrainTest) -> dict[str, NDArray[Any]]:
    """What the report and a resumed run must know of the images."""
    (train, test, is_split) = images
    return {
        "digest": _digest(images),
        "num_train": np.array(len(train)),
        "num_test": np.array(len(test)),
        "num_measured": np.array(min(len(test), _NUM_MEASURED)),
        "is_split": np.array(int(is_split)),
        "shape": np.array(train.shape),
    }


def _digest(images: TrainTest) -> NDArray[np.uint8]:
    """A hash of all images and labels, (32,)."""
    sha256 = hashlib.sha256()
    for part in images[:2]:
        sha256.update(repr((part.shape, len(part))).encode())
        sha256.update(np.ascontiguousarray(part.inputs).data)
        sha256.update(np.ascontiguousarray(part.labels).data)
    return np.frombuffer(sha256.digest(), np.uint8)


def _arms(config: Config) -> list[Arm]:
    """All kinds of networks; the first is what the others are compared with."""
    return [
        Arm(DETERMINISTIC),
        *(Arm(f"noise {std:g}", noise_std=std) for std in config.noise_stds),
        Arm(f"dropout {config.dropout:g}", dropout=config.dropout),
    ]


def _cells(config: Config) -> Iterator[Cell]:
    """All trainings, in their order: the deterministic one first of its seed."""
    for repetition in range(config.num_seeds):
        for arm in _arms(config):
            yield Cell(arm, repetition)


def _compute(
    config: Config, images: TrainTest, arrays_after: ArraysAfter, cell: Cell
) -> CellRows:
    """Trains one network and measures it now and then."""
    started = time.perf_counter()
    key = (_STREAM, cell.repetition)
    words = np.random.SeedSequence(config.seed, spawn_key=key).generate_state(
        2, np.uint64
    )
    (network_seed, order_seed) = (int(word) for word in words)
    network = _network(config, images, cell.arm, network_seed)
    optimizer = torch.optim.SGD(
        network.parameters(), config.learning_rate, momentum=config.momentum
    )
    (inputs, labels) = _on(config.device, images.train)
    order = torch.Generator().manual_seed(order_seed)
    start = _calibrated(config, images, cell.arm, network)
    rows, kept = _measured(config, images, cell, start, 0)
    logged = _logged_epochs(config.epochs)
    step_seconds = []
    for epoch in range(1, config.epochs + 1):
        network.train()
        for batch in _batches(len(inputs), order, config.device):
            began = time.perf_counter()
            (_, logits) = network(inputs[batch])
            loss = torch.nn.functional.cross_entropy(logits, labels[batch])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            step_seconds.append(time.perf_counter() - began)
        if epoch in logged:
            more, arrays_now = _measured(config, images, cell, network, epoch)
            rows, kept = rows + more, {**kept, **arrays_now}
    if not math.isfinite(rows[-1]["train_loss"]):
        raise RunError(f"training diverged: {cell.name}")
    recomputed = _calibrated(config, images, cell.arm, network)
    (_, recomputed_errors) = _evaluated(recomputed, *_on(config.device, images.test))
    disturbed_errors = _disturbed_errors(config, images, network)
    compared, similarities = _compared(
        config, images, cell, {"": network, "recomputed_": recomputed}, arrays_after
    )
    for row in rows[-NUM_LAYERS:]:
        row["recomputed_test_errors"] = recomputed_errors
        row["disturbed_test_errors"] = disturbed_errors
        row.update(compared.get(row["layer"], {}))
    history: Row = {
        "arm": cell.arm.name,
        "repetition": cell.repetition,
        "seconds": round(time.perf_counter() - started, 3),
        # Of a training step, measurements apart.
        "step_seconds": round(statistics.median(step_seconds), 6),
    }
    return CellRows(rows, [history], {**kept, **similarities})


def _network(config: Config, images: TrainTest, arm: Arm, seed: int) -> Network:
    """A network before training, where it is to be trained."""
    num_classes = 1 + int(max(images.train.labels.max(), images.test.labels.max()))
    network = Network(images.train.shape, num_classes, arm, seed)
    # Convolutions of few channels are a fifth faster in this layout, on the CPU.
    placed: Network = network.to(  # type: ignore[call-overload]  # unknown to its stub
        config.device, memory_format=torch.channels_last
    )
    return placed


def _calibrated(
    config: Config, images: TrainTest, arm: Arm, network: Network
) -> Network:
    """A copy whose normalisations know the training images, noise and dropout off.

    Before training they would let all activations near zero. After training they know
    activations with noise or dropout on, before pooling and of weights of the last few
    batches: not what they normalise when a network is measured.
    """
    copy = _network(config, images, arm, seed=0)
    copy.load_state_dict(network.state_dict())
    copy.eval()
    for norm in copy.norms:
        assert isinstance(norm, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d)
        norm.reset_running_stats()
        norm.train()
        norm.momentum = None  # the mean over all batches
    (inputs, _) = _on(config.device, images.train)
    with torch.no_grad():
        for part in inputs.tensor_split(math.ceil(len(inputs) / _MOST_IMAGES)):
            copy(part)
    copy.eval()
    return copy


def _batches(
    count: int, generator: torch.Generator, device: str
) -> Iterator[torch.Tensor]:
    """Whole batches of shuffled images, once through; what is left over waits."""
    order = torch.randperm(count, generator=generator).to(device)
    size = min(_BATCH, count)
    yield from torch.split(order[: count // size * size], size)


def _on(device: str, data: ImageDataset) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and labels as tensors on the device."""
    images = torch.from_numpy(data.images).to(device, memory_format=torch.channels_last)
    return images, torch.from_numpy(data.labels).to(device)


def _logged_epochs(epochs: int) -> list[int]:
    """Epochs after which a network is measured, evenly on a logarithmic axis."""
    logged = np.geomspace(1, epochs, min(_NUM_LOGS, epochs))
    return sorted({round(epoch) for epoch in logged})


def _measured(
    config: Config, images: TrainTest, cell: Cell, network: Network, epoch: int
) -> tuple[list[Row], dict[str, NDArray[Any]]]:
    """A row for every layer, and of the first seed the histograms of distances."""
    network.eval()
    (train_loss, _) = _evaluated(network, *_on(config.device, images.train))
    (test_loss, test_errors) = _evaluated(network, *_on(config.device, images.test))
    labels = images.test.labels[:_NUM_MEASURED]
    rows: list[Row] = []
    kept = {}
    for layer, clean in enumerate(_representations(config, images, network), 1):
        affordable = max(2, _MOST_DISTANCE_NUMBERS // clean.shape[1])
        distances = class_distances(
            clean, labels, max_pairs=min(_MOST_DISTANCES, affordable)
        )
        rows.append(
            {
                "arm": cell.arm.name,
                "noise_std": cell.arm.noise_std,
                "repetition": cell.repetition,
                "epoch": epoch,
                "layer": layer,
                "train_loss": train_loss,
                "test_loss": test_loss,
                "test_errors": test_errors,
                "recomputed_test_errors": math.nan,  # these two after training
                "disturbed_test_errors": math.nan,
                "within": distances.mean_within,
                "between": distances.mean_between,
                **{
                    f"binned_entropy_{width:g}": Binning(width, 0).entropy(clean).value
                    for width in BIN_WIDTHS
                },
                "unit_entropy": _unit_entropy(clean),
                "similarity": math.nan,  # these two after training
                "recomputed_similarity": math.nan,
            }
        )
        if cell.repetition == 0 and epoch in (0, config.epochs):
            when = "after" if epoch else "before"
            for name, value in asdict(distances).items():
                kept[f"distances.{cell.arm.name}.{when}.{layer}.{name}"] = np.array(
                    value
                )
    return rows, kept


def _unit_entropy(clean: NDArray[np.float32]) -> float:
    """Mean over units of the entropy of each one's bins, of the width judged; nats."""
    cells = np.floor(clean / JUDGED_WIDTH)
    total = 0.0
    for cell in np.unique(cells):
        share = (cells == cell).mean(axis=0)
        share = share[share > 0]
        total -= float(share @ np.log(share))
    return total / int(clean.shape[1])


def _representations(
    config: Config, images: TrainTest, network: Network
) -> list[NDArray[np.float32]]:
    """Of every hidden layer, of the first test images, noise off; (m, d) each."""
    network.eval()
    (inputs, _) = _on(config.device, images.test)
    with torch.no_grad():
        (clean, _) = network(inputs[:_NUM_MEASURED])
    # Contiguous before it is flattened: units in the order of channel, row, column.
    return [layer.contiguous().flatten(1).cpu().numpy() for layer in clean]


@torch.no_grad()
def _evaluated(
    network: Network, inputs: torch.Tensor, labels: torch.Tensor
) -> tuple[float, int]:
    """Mean cross-entropy, and the number of images that are not classified rightly."""
    loss, errors = 0.0, 0
    for start in range(0, len(inputs), _MOST_IMAGES):
        part = slice(start, start + _MOST_IMAGES)
        (_, logits) = network(inputs[part])
        loss += torch.nn.functional.cross_entropy(
            logits, labels[part], reduction="sum"
        ).item()
        errors += int((logits.argmax(dim=1) != labels[part]).sum())
    return loss / len(inputs), errors


def _disturbed_errors(config: Config, images: TrainTest, network: Network) -> int:
    """Test errors with noise or dropout on; it moves on the network's generators."""
    network.eval()
    network.disturbances.train()
    (_, errors) = _evaluated(network, *_on(config.device, images.test))
    return errors


def _compared(
    config: Config,
    images: TrainTest,
    cell: Cell,
    networks: Mapping[str, Network],
    arrays_after: ArraysAfter,
) -> tuple[dict[int, Row], dict[str, NDArray[Any]]]:
    """Mean similarities with a deterministic network, by layer, and what is kept.

    That of the same seed, or, of a deterministic network, the one of the seed before.
    Both as trained, and both with their normalisation recomputed. Deterministic
    networks are kept whole; of the first comparison of a kind, the similarity of every
    image, as trained.
    """
    is_deterministic = cell.arm.name == DETERMINISTIC
    kept: dict[str, NDArray[Any]] = {}
    other = cell.repetition
    if is_deterministic:
        for name, tensor in networks[""].state_dict().items():
            value = tensor.detach().cpu().contiguous().numpy()
            kept[f"network.{cell.repetition}.{name}"] = value
        if cell.repetition == 0:
            return {}, kept
        other -= 1
    prefix, arm = f"network.{other}.", Arm(DETERMINISTIC)
    arrays = arrays_after(other * len(_arms(config)))  # it is the first of its seed
    reference = _network(config, images, arm, seed=0)
    reference.load_state_dict(
        {
            name.removeprefix(prefix): torch.from_numpy(value)
            for name, value in arrays.items()
            if name.startswith(prefix)
        }
    )
    references = {
        "": reference,
        "recomputed_": _calibrated(config, images, arm, reference),
    }
    columns: dict[int, Row] = {}
    for reading, network in networks.items():
        pairs = zip(
            _representations(config, images, network),
            _representations(config, images, references[reading]),
            strict=True,
        )
        for layer, (own, its) in enumerate(pairs, 1):
            similarity = cosine_similarity(own, its)
            row = columns.setdefault(layer, {})
            row[f"{reading}similarity"] = float(similarity.mean())
            if other == 0 and not reading:
                name = ANOTHER_SEED if is_deterministic else cell.arm.name
                kept[f"similarity.{name}.{layer}"] = similarity
    return columns, kept


def _plan(config: Config, described: Mapping[str, NDArray[Any]]) -> str:
    """What will be done."""
    arms = _arms(config)
    return (
        f"{len(arms)} kinds of networks x {config.num_seeds} seeds, {config.epochs} "
        f"epochs of {described['num_train']} images of "
        f"{described['shape'][1]} x {described['shape'][2]} pixels"
    )
