"""A PyTorch Lightning callback that measures the hidden layers while a network learns.

For `pytorch_lightning` and for `lightning.pytorch`, whichever is installed; import it
first where both are. Nothing else in noisyflow imports this module.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
import math
import sys
from collections.abc import Callable, Container
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from noisyflow.chain import NoisyChain
from noisyflow.nn import GaussianNoise, NoisyMLP
from noisyflow.runs import Row, table_bytes, write_atomically
from noisyflow.tracking import InformationTracker, LayerInformation

_PER_DECADE = 10


def _callback_classes() -> tuple[type, ...]:
    """The class Callback of the Lightning in use."""
    known = ("pytorch_lightning", "lightning.pytorch")
    found = [name for name in known if name in sys.modules]
    if not found:
        found = [name for name in known if _is_installed(name)][:1]
    if not found:
        raise ModuleNotFoundError(
            "noisyflow.lightning needs pytorch-lightning; run: "
            "pip install 'noisyflow[lightning]'",
            name="pytorch_lightning",
        )
    return tuple(importlib.import_module(name).Callback for name in found)


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # its parent is not
        return False


if TYPE_CHECKING:

    class _Callback: ...

else:
    _Callback = type("_Callback", _callback_classes(), {})


class InformationCallback(_Callback):
    """Measures I(X;T_l) of every hidden layer at chosen epochs of a Lightning training.

    Logs `information/layer_1` with `information/layer_1_error` (standard error),
    `_lower` and `_upper` (bias bracket), and so on for every layer, through the module;
    with labels `label_information/layer_1`, ..., too. All in nats.

    Parameters
    ----------
    inputs : (m, ...) array
        X is uniform over these inputs, as the network takes them.
    labels : (m,) array, optional
        The label Y of every input.
    network : callable, optional
        `network(module)` gives the NoisyMLP, or the Sequential with GaussianNoise, to
        be measured. By default the only one among the module's attributes.
    epochs : container of int, optional
        Epochs to measure at, from 0: epoch e is the state after e + 1 passes over the
        data. By default about ten per decade, logarithmically spaced, and the last,
        also where training ends by `max_steps` or early stopping.
    path : str or Path, optional
        CSV file of all that was measured, written anew after every measurement. By
        default `information.csv` in the trainer's `log_dir`.
    **settings
        Of `InformationTracker`: seed, standard_error, bracket_width, ...

    Attributes
    ----------
    table : list of dict
        A row per epoch and layer of the last fit, as in the file. Part of Lightning's
        checkpoints: a training that is resumed goes on with it.

    Raises
    ------
    TypeError, ValueError
        From `Trainer.fit`, if the network is not one that can be measured.

    Notes
    -----
    Measures on a copy of the layers, in evaluation mode and on the CPU, with random
    numbers of its own: training is the same as without. In distributed training the
    process of rank 0 measures and the others wait.
    """

    def __init__(
        self,
        inputs: Any,
        labels: Any = None,
        *,
        network: Callable[[Any], torch.nn.Module] | None = None,
        epochs: Container[int] | None = None,
        path: str | Path | None = None,
        **settings: Any,
    ) -> None:
        super().__init__()
        self._inputs, self._labels = inputs, labels
        self._network = network
        self._epochs = epochs
        self._path = None if path is None else Path(path)
        self._file: Path | None = None  # of the fit at hand
        self._last_epoch: int | None = None
        self._settings = settings
        self.table: list[Row] = []

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Finds the network and the file, before any training."""
        if stage != "fit":
            return
        self._tracker(pl_module)
        log_dir = trainer.log_dir  # asked of all processes, or they wait for ever
        self._file = self._path
        if self._file is None and log_dir is not None:
            self._file = Path(log_dir) / "information.csv"
        self._last_epoch = None
        if trainer.current_epoch == 0:  # a checkpoint's rows are loaded after this
            self.table = []

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Measures and logs, if it is time."""
        epoch = self._last_epoch = int(trainer.current_epoch)
        if self._is_due(epoch, trainer.max_epochs):
            values = self._measure(trainer, pl_module, epoch)
            pl_module.log_dict(
                values, on_step=False, on_epoch=True, rank_zero_only=True
            )

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Measures the last epoch where nobody knew that it would be the last."""
        epoch = self._last_epoch
        if (
            self._epochs is None
            and epoch is not None
            and not self._is_due(epoch, trainer.max_epochs)
        ):
            values = self._measure(trainer, pl_module, epoch)
            for logger in trainer.loggers:  # the module's log has closed
                logger.log_metrics(values, step=int(trainer.global_step))
                logger.save()

    def _measure(self, trainer: Any, pl_module: Any, epoch: int) -> dict[str, float]:
        """Adds to the table; what is to be logged, nothing but in rank 0."""
        values: dict[str, float] = {}
        if trainer.is_global_zero:
            found = self._tracker(pl_module).measure(epoch)
            self.table += [_row(epoch, int(trainer.global_step), x) for x in found]
            if self._file is not None:
                self._file.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(self._file, table_bytes(self.table))
            for information in found:
                values |= _scalars(information)
        return values

    def state_dict(self) -> dict[str, Any]:
        """What was measured, for Lightning's checkpoints."""
        return {"table": [dict(row) for row in self.table]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on with what was measured before."""
        self.table = list(state_dict["table"])

    def _is_due(self, epoch: int, max_epochs: int | None) -> bool:
        """Whether to measure after this epoch."""
        if self._epochs is not None:
            return epoch in self._epochs
        return _is_log_spaced(epoch + 1) or epoch + 1 == max_epochs

    def _tracker(self, pl_module: Any) -> InformationTracker:
        """A tracker of the network as it is now."""
        find = self._network or _noisy_network
        network = find(pl_module)
        if not isinstance(network, NoisyMLP):
            chain = NoisyChain.from_module(network)
            layers = [copy.deepcopy(layer).eval() for layer in _modules(chain)]
            network = NoisyChain(layers, chain.noise_stds)  # type: ignore[assignment]
        return InformationTracker(network, self._inputs, self._labels, **self._settings)


def _is_log_spaced(number: int) -> bool:
    """Whether a number is among 1, 2, 3, ..., 10, 13, 16, 20, 25, ..., 100, 126, ...

    That is 10^(k/10), rounded, for a whole number k, or at most 10.
    """
    steps = round(_PER_DECADE * math.log10(number))
    return number <= 10 or round(10 ** (steps / _PER_DECADE)) == number


def _modules(chain: NoisyChain) -> list[torch.nn.Module]:
    """The layers of a chain that was split from a module."""
    return [layer for layer in chain.layers if isinstance(layer, torch.nn.Module)]


def _noisy_network(module: torch.nn.Module) -> torch.nn.Module:
    """The only noisy network among the attributes of a Lightning module."""
    found = {
        name: child
        for name, child in module.named_children()
        if isinstance(child, NoisyMLP)
        or (
            isinstance(child, torch.nn.Sequential)
            and any(isinstance(part, GaussianNoise) for part in child.modules())
        )
    }
    if len(found) != 1:
        raise ValueError(
            f"{type(module).__name__} must have one attribute that is a NoisyMLP or a "
            f"Sequential with GaussianNoise, got {', '.join(found) or 'none'}; pass "
            "network=lambda module: ..."
        )
    (network,) = found.values()
    return network


def _row(epoch: int, step: int, information: LayerInformation) -> Row:
    """A row of the table."""
    row: Row = {"epoch": epoch, "step": step, "layer": information.layer}
    estimate, label = information.mutual_information, information.label_information
    names = ("standard_error", "lower", "upper")
    row["mutual_information"] = float(estimate.value)
    row |= {name: float(getattr(estimate, name)) for name in names}
    if label is not None:
        row["label_information"] = float(label.value)
        row |= {f"label_{name}": float(getattr(label, name)) for name in names}
    return row


def _scalars(information: LayerInformation) -> dict[str, float]:
    """What is logged of a layer."""
    scalars = {}
    for prefix, estimate in (
        ("information", information.mutual_information),
        ("label_information", information.label_information),
    ):
        if estimate is not None:
            name = f"{prefix}/layer_{information.layer}"
            scalars[name] = float(estimate.value)
            scalars[f"{name}_error"] = float(estimate.standard_error)
            scalars[f"{name}_lower"] = float(estimate.lower)
            scalars[f"{name}_upper"] = float(estimate.upper)
    return scalars
