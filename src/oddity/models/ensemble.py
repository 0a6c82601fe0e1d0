"""Ensembles of decoders on the codes of one encoder: how they disagree says where there are no data."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal, overload

import numpy.typing as npt
import torch
from torch import Tensor, nn

from oddity._version import __version__
from oddity.models.checks import check_whole, layers_of
from oddity.models.layers import Output
from oddity.models.rbf import DEFAULT_MIN_STD
from oddity.models.storage import fault_of, read_folder, rebuilt, write_folder
from oddity.models.training import (
    _MEMBER,
    Progress,
    _as_numbers,
    _as_rows,
    _check_data,
    _check_output,
    _Descent,
    _launch,
    _pick_output,
    _Run,
    _Schedule,
    _seed,
    _together,
)
from oddity.models.vae import VAE, Architecture
from oddity.numerics.ambient import door, doors

__all__ = ["Ensemble", "fit_ensemble", "load_ensemble", "save_ensemble"]

ENSEMBLE_FILE = "ensemble.json"


@doors
class Ensemble(nn.ModuleList):
    """The mean networks of several decoders of one latent space, each a map ``(*, d) -> (*, D)``.

    A list of modules, which :func:`~oddity.ensemble_metric` and :func:`~oddity.independent_members_energy` take as it
    is; a slice is an ensemble of fewer members.

    Parameters
    ----------
    architecture : Architecture
        Of a model whose decoder's mean each member is.
    members : iterable of Module
        At least one.

    References
    ----------
    Lakshminarayanan, Pritzel, Blundell, "Simple and scalable predictive uncertainty estimation using deep ensembles",
    NeurIPS 2017.

    Examples
    --------
    >>> plan = Architecture(data_dim=6, latent_dim=2, hidden=(8, 4))
    >>> ensemble = Ensemble(plan, [plan.build(seed).decoder.mean_net for seed in range(3)])
    >>> len(ensemble), len(ensemble[:2]), ensemble[0](torch.zeros(5, 2)).shape
    (3, 2, torch.Size([5, 6]))
    """

    def __init__(self, architecture: Architecture, members: Iterable[nn.Module]) -> None:
        super().__init__(members)
        self.architecture = architecture

    @overload
    def __getitem__(self, index: slice) -> Ensemble: ...

    @overload
    def __getitem__(self, index: int) -> nn.Module: ...

    def __getitem__(self, index: int | slice) -> nn.Module:
        """Return a member, or an ensemble of some."""
        if isinstance(index, slice):
            return Ensemble(self.architecture, list(self)[index])
        return super().__getitem__(index)


@door
@torch.enable_grad()
def fit_ensemble(
    model: VAE | Tensor | npt.ArrayLike,
    X: Tensor | npt.ArrayLike,
    *,
    n_members: int = 5,
    hidden: Sequence[int] | None = None,
    output: Output | Literal["auto"] = "auto",
    epochs: int = 100,
    batch_size: int = 128,
    lr: float = 3e-3,
    weight_decay: float = 1e-5,
    seed: int = 0,
    accelerator: str = "auto",
    devices: int = 1,
    strategy: str = "auto",
    precision: Any = "32-true",
    progress: Progress | None = None,
) -> Ensemble:
    """Fit several decoders to the same codes, each from random weights of its own.

    Near the codes the data hold the members together; away from them nothing does, and their disagreement makes
    :func:`~oddity.ensemble_metric` long there. Each is trained as the mean of :func:`fit_vae` is, by Adam on the
    likelihood under one standard deviation (here the likeliest for a batch), with the encoder frozen, in an order of
    the rows and with draws from the posterior of its own.

    Parameters
    ----------
    model : VAE or array-like
        A fitted model, whose encoder gives the posterior of each row; or the codes themselves, (n, d), of any encoder.
    X : array-like or Tensor
        The data (n, D): those the model was fitted on, or row by row those of the codes.
    n_members : int
        S >= 1.
    hidden : sequence of int, optional
        Hidden layers as in :func:`fit_vae`: a member has them in reverse. By default the model's; for codes (64, 32).
    output : {"auto", "identity", "sigmoid", "tanh"}
        Last activation. By default the model's; for codes as in :func:`fit_vae`.
    epochs, batch_size, lr, weight_decay, seed, accelerator, devices, strategy, precision, progress
        As for :func:`fit_vae`; the stage is called "ensemble", its value is the members' mean log-likelihood of a row.
        A member depends on ``seed`` and its number alone: the first of a larger ensemble are those of a smaller one.

    Returns
    -------
    Ensemble
        In evaluation mode, its parameters frozen, on the device of X.

    Raises
    ------
    ValueError
        When the data, the codes or a setting is unfit, or they do not belong together.
    RuntimeError
        When training diverges.

    Notes
    -----
    Lakshminarayanan, Pritzel, Blundell, "Simple and scalable predictive uncertainty estimation using deep ensembles",
    NeurIPS 2017. Syrota, Moreno-Munoz, Hauberg, "Decoder ensembling for learned latent geometries", 2024, train
    the encoder with the members.

    Examples
    --------
    >>> X = torch.rand(64, 5, generator=torch.Generator().manual_seed(0))
    >>> ensemble = fit_ensemble(X[:, :2], X, n_members=3, hidden=(8, 4), epochs=2)
    >>> len(ensemble), ensemble[0](X[:, :2]).shape
    (3, torch.Size([64, 5]))
    """
    rows = _as_rows(_as_numbers(X, precision), images=isinstance(model, VAE) and model.image_shape is not None)
    schedule = _Schedule(epochs, batch_size, lr, weight_decay, seed)
    schedule.check()
    check_whole(n_members=n_members)
    if isinstance(model, VAE):
        _check_data(model, rows, precision)
        plan = replace(Architecture.of(model), scale="constant", scale_hidden=(), n_centres=0, min_std=DEFAULT_MIN_STD)
    else:
        model = _as_codes(model, rows, precision)
        plan = Architecture(rows.shape[1], model.shape[1], output=_pick_output(rows))
    if hidden is not None:
        plan = replace(plan, hidden=layers_of(hidden, least=1))
    if output != "auto":
        plan = replace(plan, output=output)
    _check_output(plan.output)
    run = _Run(_launch(accelerator, devices, strategy, precision, len(rows)), rows, progress)
    run = replace(run, rows=torch.cat([rows, *_posterior(run, model)], 1))
    with _together():
        members = _fitted(run, schedule, plan, int(n_members))
    return Ensemble(plan, members).to(X.device if isinstance(X, Tensor) else "cpu").eval().requires_grad_(False)


@door
def save_ensemble(path: str | os.PathLike[str], ensemble: Ensemble, *, info: Mapping[str, Any] | None = None) -> Path:
    """Write an ensemble to a folder, as :func:`~oddity.save_model` does a model.

    Parameters
    ----------
    path : path-like
        The folder; replaced if it holds an ensemble, refused if it holds anything else.
    ensemble : Ensemble
        At least one member.
    info : mapping, optional
        Anything that JSON can say.

    Returns
    -------
    Path
        The folder, with ``ensemble.json`` and ``weights.safetensors``.

    Raises
    ------
    ValueError
        When the folder holds other files, a weight is not finite, or ``info`` is not JSON.
    OSError
        When the disk fails; an earlier ensemble is then still in place.

    Examples
    --------
    >>> import tempfile
    >>> X = torch.rand(64, 5, generator=torch.Generator().manual_seed(0))
    >>> ensemble = fit_ensemble(X[:, :2], X, n_members=3, hidden=(8, 4), epochs=2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     again = load_ensemble(save_ensemble(folder + "/toy", ensemble))
    >>> bool((again[2](X[:, :2]) == ensemble[2](X[:, :2])).all())
    True
    """
    if fault := fault_of(ensemble):
        raise ValueError(f"{fault}: train the ensemble again")
    about = {
        "oddity": __version__,
        "architecture": asdict(ensemble.architecture),
        "members": len(ensemble),
        "info": dict(info or {}),
    }
    write_folder(Path(path), ENSEMBLE_FILE, about, {"weights": ensemble.state_dict()})
    return Path(path)


@door
def load_ensemble(path: str | os.PathLike[str]) -> Ensemble:
    """Read an ensemble written by :func:`save_ensemble`, bit for bit: in evaluation mode, frozen, on the CPU.

    Raises
    ------
    FileNotFoundError
        When the folder or one of its files is missing.
    ValueError
        When a file is damaged, of another format version, or the weights don't fit the description.

    Examples
    --------
    >>> import tempfile
    >>> plan = Architecture(data_dim=6, latent_dim=2, hidden=(8, 4))
    >>> ensemble = Ensemble(plan, [plan.build(seed).decoder.mean_net for seed in range(3)])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     len(load_ensemble(save_ensemble(folder + "/toy", ensemble)))
    3
    """
    about, tensors = read_folder(Path(path), ENSEMBLE_FILE, remedy="save the ensemble again")
    weights = tensors.get("weights", {})

    def build(plan: Architecture) -> Ensemble:
        check_whole(members=about["members"])
        if about["members"] > len(weights):
            raise ValueError(f"{about['members']} members for {len(weights)} weights")
        return Ensemble(plan, [plan.build().decoder.mean_net for _ in range(about["members"])])

    return rebuilt(Path(path), about, weights, build)


class _Loss(nn.Module):
    """The negative mean log-likelihood of rows that hold the data and the mean and deviation of their codes.

    The noise has one standard deviation, the likeliest for the rows at hand: D/2 log(2 pi e (residual + floor)).
    """

    def __init__(self, member: nn.Module, plan: Architecture) -> None:
        super().__init__()
        self.member, self.latent_dim, self._floor = member, plan.latent_dim, plan.min_std**2
        self._sizes = [plan.data_dim, plan.latent_dim, plan.latent_dim]

    def forward(self, rows: Tensor, noise: Tensor, kl_weight: float) -> Tensor:  # noqa: ARG002  the encoder is fixed
        x, mean, std = rows.split(self._sizes, dim=1)
        residual: Tensor = (x - self.member(mean + std * noise)).square().mean()
        bound: Tensor = 0.5 * x.shape[1] * (2 * math.pi * math.e * (residual + self._floor)).log()
        return bound


def _as_codes(z: Tensor | npt.ArrayLike, rows: Tensor, precision: Any) -> Tensor:
    """Return codes (n, d) that can be those of the rows, or say what is wrong with them."""
    if isinstance(z, nn.Module):
        raise ValueError(f"model is a {type(z).__name__}: pass a VAE of this library, or the codes that yours gives")
    codes = _as_rows(_as_numbers(z, precision, "codes"), "codes")
    if len(codes) != len(rows):
        raise ValueError(f"there are {len(codes)} codes for {len(rows)} rows of X: pass one code for each row")
    if codes.shape[1] > rows.shape[1]:
        raise ValueError(f"codes of {codes.shape[1]} dimensions exceed the {rows.shape[1]} columns of X")
    return codes


@torch.no_grad()
def _posterior(run: _Run, model: VAE | Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each row's code, on the CPU: given codes have none."""
    if isinstance(model, Tensor):
        return model, torch.zeros_like(model)
    encoder = run.fabric.to_device(copy.deepcopy(model.encoder))
    means, stds = zip(*(encoder(x) for x in run.blocks(run.rows)), strict=True)
    return torch.cat(means).cpu(), torch.cat(stds).cpu()


def _fitted(run: _Run, schedule: _Schedule, plan: Architecture, n_members: int) -> list[nn.Module]:
    """Train the members side by side, an epoch of each in turn."""
    seeds = [_seed(schedule.seed, _MEMBER, number) for number in range(n_members)]
    members = [plan.build(seed).decoder.mean_net.to(run.rows.dtype) for seed in seeds]
    descents = [
        _Descent(run, replace(schedule, seed=seed), _MEMBER, _Loss(member, plan), member.parameters())
        for seed, member in zip(seeds, members, strict=True)
    ]
    for epoch in range(schedule.epochs):
        values = [descent.epoch(epoch, kl_weight=1.0) for descent in descents]
        run.report("ensemble", epoch + 1, schedule.epochs, sum(values) / n_members)
    return [member.to(run.rows.dtype) for member in members]
