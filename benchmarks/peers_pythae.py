"""The VAE of ``peers.mlp_vae`` in pythae, from the same weights: its own model, ``get_nll`` and trainer."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import torch
from peers import LEARNING_RATE, networks
from pythae.data.datasets import BaseDataset
from pythae.models import VAE, VAEConfig
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder
from pythae.trainers import BaseTrainer, BaseTrainerConfig
from pythae.trainers.training_callbacks import TrainingCallback
from torch import Tensor, nn

import pyrovae as pv


class _Encoder(BaseEncoder):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> ModelOutput:
        loc, log_scale = self.network(x).chunk(2, dim=-1)
        return ModelOutput(embedding=loc, log_covariance=2 * log_scale)


class _Decoder(BaseDecoder):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, z: Tensor) -> ModelOutput:
        return ModelOutput(reconstruction=torch.sigmoid(self.network(z)))


def model_of(vae: pv.VAE) -> VAE:
    encoder, decoder = networks(vae)
    widths = {"input_dim": (encoder[0].in_features,), "latent_dim": decoder[0].in_features}
    config = VAEConfig(reconstruction_loss="bce", **widths)
    return VAE(config, encoder=_Encoder(encoder), decoder=_Decoder(decoder))


def evidence_by_pythae(vae: pv.VAE, x: Tensor, num_samples: int, batch_size: int) -> Callable[[], float]:
    """``get_nll``, without gradients."""
    model = model_of(vae)

    @torch.no_grad()
    def run() -> float:
        return float(model.get_nll(x, n_samples=num_samples, batch_size=batch_size))

    return run


def train_until(
    vae: pv.VAE,
    rows: Tensor,
    validation: Tensor,
    batch_size: int,
    epochs: int,
    seed: int,
    done: Callable[[float], bool],
) -> None:
    """Its trainer, until ``done`` is true of the validation ELBO after an epoch (the KL in closed form, one draw).

    In a process of its own: what it has to say to the terminal is left out.
    """

    class Stop(TrainingCallback):
        def on_log(self, training_config: Any, logs: dict[str, float], **kwargs: Any) -> None:
            if done(-logs["eval_epoch_loss"]):
                raise KeyboardInterrupt

    logging.disable(logging.INFO)
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as nowhere:
        config = BaseTrainerConfig(
            output_dir=folder,
            num_epochs=epochs,
            per_device_train_batch_size=batch_size,
            per_device_eval_batch_size=batch_size,
            learning_rate=LEARNING_RATE,
            seed=seed,
        )
        with contextlib.redirect_stderr(nowhere), contextlib.suppress(KeyboardInterrupt):
            BaseTrainer(model_of(vae), _dataset(rows), _dataset(validation), config, [Stop()]).train()


def _dataset(rows: Tensor) -> BaseDataset:
    return BaseDataset(rows, torch.zeros(len(rows)))


VERSIONS = {"pythae": version("pythae")}
