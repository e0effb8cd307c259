"""A PyTorch Lightning training whose hidden layers are measured while it learns.

    pip install -c constraints.txt '.[lightning]'  # in the clone
    python examples/lightning_tracking.py
    tensorboard --logdir lightning_logs

TensorBoard shows `information/layer_1`, ... beside the loss; the same numbers are in
`information.csv` in the run's folder.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger

from noisyflow.lightning import InformationCallback
from noisyflow.nn import add_noise


class Classifier(pl.LightningModule):
    """A module like any other, around a network with noise."""

    def __init__(self, noise_std: float) -> None:
        super().__init__()
        self.network = add_noise(
            torch.nn.Sequential(
                torch.nn.Linear(2, 8),
                torch.nn.Tanh(),
                torch.nn.Linear(8, 3),
                torch.nn.Tanh(),
                torch.nn.Linear(3, 2),
            ),
            noise_std,
        )

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        inputs, labels = batch
        loss = torch.nn.functional.cross_entropy(self.network(inputs), labels)
        self.log("loss", loss, on_step=False, on_epoch=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.01)


def rings(num_inputs: int) -> tuple[np.ndarray, np.ndarray]:
    """Two noisy rings, one inside the other."""
    rng = np.random.default_rng(0)
    labels = np.arange(num_inputs) % 2
    angles = rng.uniform(0, 2 * np.pi, num_inputs)
    radii = 0.5 + labels + 0.1 * rng.standard_normal(num_inputs)
    inputs = radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return inputs.astype(np.float32), labels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--noise-std", type=float, default=0.1)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--inputs", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path("lightning_logs"))
    options = parser.parse_args()

    torch.set_num_threads(1)  # small networks are faster on one
    inputs, labels = rings(options.inputs)
    pl.seed_everything(0)
    information = InformationCallback(inputs, labels)
    data = torch.utils.data.TensorDataset(
        torch.from_numpy(inputs), torch.from_numpy(labels)
    )
    trainer = pl.Trainer(
        max_epochs=options.epochs,
        accelerator="cpu",
        callbacks=[information],
        logger=TensorBoardLogger(options.out, name=None),
        enable_progress_bar=False,
        log_every_n_steps=1,
    )
    trainer.fit(
        Classifier(options.noise_std),
        torch.utils.data.DataLoader(data, batch_size=25, shuffle=True),
    )
    print("epoch  layer  I(X;T)            I(Y;T), in nats, ± one standard error")
    for row in information.table:
        print(
            f"{row['epoch']:5d}  {row['layer']:5d}  "
            f"{row['mutual_information']:.3f} ± {row['standard_error']:.3f}     "
            f"{row['label_information']:.3f} ± {row['label_standard_error']:.3f}"
        )
    print(f"tensorboard --logdir {trainer.log_dir}")


if __name__ == "__main__":
    main()
