"""Training in the paper's three stages: the mean, then the centres, then the precision alone.

The loops are plain; lightning-fabric supplies device, precision and processes. Each epoch draws from its own
generator, seeded by (seed, stage, epoch, process), so that a resumed run repeats an unbroken one bit for bit
and the global random state is never touched.
"""

import copy
import dataclasses
import hashlib
import logging
import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from oddity.models.checks import check_choice, check_not_negative, check_positive, check_seed, check_whole, layers_of
from oddity.models.conv_rbf import ConvRBFPrecision
from oddity.models.layers import ImageShape, Output
from oddity.models.rbf import DEFAULT_MIN_STD, DEFAULT_ZETA, RBFPrecision, WeightLikelihood, placed
from oddity.models.storage import check_replaceable, fault_of, locate, read_folder, write_folder
from oddity.models.vae import (
    VAE,
    Architecture,
    ConstantScale,
    evidence_bound,
    normal,
    prior_divergence,
)
from oddity.numerics.ambient import door

#: ``progress(stage, epoch, epochs, value)``, called after every epoch (counted from 1).
Progress = Callable[[str, int, int, float], None]

_CHECKPOINT = "checkpoint.json"
_AFRESH = "start afresh without resuming (at the command line, --force in place of --resume)"
_MEAN, _DRAWS, _SIGMA, _MEMBER = 1, 3, 4, 5  # stages, as they enter the seeds
_EPOCHS = {"mean": "epochs", "precision": "variance_epochs"}  # settings, by the stages that are kept
_FLAT_SHARE = 1e-6  # of the variance, that the mean of a network spans before any training
_FLAT = (
    "the decoder's mean is the same at every code: the first stage has learned nothing of the data, and distances in "
    "this latent space mean nothing; use a smaller lr, a smaller constant_std or more epochs"
)
_BLOCK = 1 << 22  # numbers in one block of residuals: 16 MB in float32
_SCALE_MAPS = 16  # maps of each of the precision's transposed convolutions


@door
@torch.enable_grad()
def fit_vae(
    X: Tensor | npt.ArrayLike,
    *,
    latent_dim: int = 2,
    hidden: Sequence[int] = (64, 32),
    architecture: Literal["dense", "conv"] = "dense",
    channels: Sequence[int] = (16, 32),
    output: Output | Literal["auto"] = "auto",
    epochs: int = 200,
    variance_epochs: int = 50,
    batch_size: int = 128,
    lr: float = 3e-3,
    weight_decay: float = 1e-5,
    n_centres: int = 64,
    a: float = 2.0,
    zeta: float = DEFAULT_ZETA,
    min_std: float = DEFAULT_MIN_STD,
    constant_std: float | None = None,
    n_draws: int = 4,
    seed: int = 0,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 10,
    resume: bool = False,
    accelerator: str = "auto",
    devices: int = 1,
    strategy: str = "auto",
    precision: Any = "32-true",
    progress: Progress | None = None,
) -> VAE:
    r"""Fit a variational autoencoder whose noise grows away from the data.

    1. *mean*: encoder and decoder mean by Adam on the evidence bound, with one standard deviation, learned or given;
       the divergence is warmed up over the first third of the epochs.
    2. *centres*: k-means on the encoder's means, one bandwidth per cluster (:func:`bandwidths`).
    3. *precision*: encoder and mean frozen, the weight W of :class:`RBFPrecision` alone by maximum likelihood over
       fixed draws from the posterior; an epoch is one exact, monotone update (:class:`WeightLikelihood`).

    Parameters
    ----------
    X : array-like or Tensor
        The data (n, D), n >= 2; any numbers, taken as float32 and not rescaled: divide pixels by 255 first. For a
        convolutional model images (n, height, width) or (n, channels, height, width), or rows of square images of one
        channel.
    latent_dim : int
        Dimension d of the codes, at most D.
    hidden : sequence of int
        Hidden layers of the encoder; the decoder has them in reverse.
    architecture : {"dense", "conv"}
        "conv" puts convolutions before the hidden layers of the encoder and transposed ones behind those of the
        decoder, for images of any size; the precision is a :class:`ConvRBFPrecision`.
    channels : sequence of int
        Feature maps of the convolutions, from the image upwards, each half as high and wide; the decoder has them in
        reverse.
    output : {"auto", "identity", "sigmoid", "tanh"}
        Last activation of the mean; "auto" takes sigmoid for data in [0, 1], tanh in [-1, 1], else identity.
    epochs, variance_epochs : int
        Epochs of stage 1 and of stage 3.
    batch_size : int
        Rows per step of stage 1, in each process.
    lr, weight_decay : float
        Adam's step size and L2 penalty in stage 1.
    n_centres, a, zeta
        Centres, their reach and the precision far away: see :class:`RBFPrecision`.
    min_std : float
        The observation noise, a floor of every standard deviation: without it the precision of a constant
        column has no bound.
    constant_std : float, optional
        The one standard deviation of stage 1, min_std aside; by default it is learned. The larger, the more the
        divergence from the prior weighs, and the smoother is the mean: with 1 on pixels in [0, 1], as has been common,
        digits form plainer clusters, and with the learned one (about 0.2) reconstructions are sharper.
    n_draws : int
        Posterior draws per row in stage 3.
    seed : int
        From 0 to 2**32 - 1; decides everything random. The global random state is neither read nor changed.
    checkpoint : path-like, optional
        Folder for checkpoints, written whole or not at all every ``checkpoint_every`` epochs and at the end of
        a stage.
    resume : bool
        Go on from the checkpoint, if there is one; the result is that of an unbroken run, bit for bit.
    accelerator, devices, strategy, precision
        As for ``lightning.fabric.Fabric``: with ``devices=2, strategy="ddp"`` the calling script is run by two
        processes, and both return the same model. "auto" takes a CUDA device if there is one, else the CPU.
    progress : callable, optional
        ``progress(stage, epoch, epochs, value)`` after every epoch, in the first process. The value is the mean
        bound per row ("mean"), the mean distance of a code to its centre ("centres"), and the mean bound,
        observation noise included, before the epoch's update ("precision").

    Returns
    -------
    VAE
        In evaluation mode, its parameters frozen, on the device of X; float32 (float64 under "64-true").

    Raises
    ------
    ValueError
        When the data or a setting is unfit, or the checkpoint belongs to another run.
    RuntimeError
        When training diverges, or another of its processes ends; the last checkpoint is intact.

    Warns
    -----
    RuntimeWarning
        When the mean is the same at every code after the first stage: nothing was learned.

    References
    ----------
    Arvanitidis et al. 2018, section 4; hidden layers, activations, weight decay, K and a are the paper's.

    Examples
    --------
    >>> X = torch.rand(64, 5, generator=torch.Generator().manual_seed(0))
    >>> vae = fit_vae(X, hidden=(8, 4), epochs=2, variance_epochs=2, n_centres=4)
    >>> vae.encode(X).shape
    torch.Size([64, 2])
    """
    if architecture not in ("dense", "conv"):
        raise ValueError(f"architecture={architecture!r}: choose 'dense' or 'conv'")
    numbers = _as_numbers(X, precision)
    image_shape = _image_shape(tuple(numbers.shape)) if architecture == "conv" else None
    rows = _as_rows(numbers, images=image_shape is not None)
    settings = _Settings(
        latent_dim=latent_dim,
        hidden=layers_of(hidden, least=1),
        image_shape=image_shape,
        channels=layers_of(channels, "channels", least=1) if image_shape else (),
        output=_pick_output(rows) if output == "auto" else output,
        epochs=epochs,
        variance_epochs=variance_epochs,
        batch_size=batch_size,
        lr=lr,
        weight_decay=weight_decay,
        n_centres=n_centres,
        a=a,
        zeta=zeta,
        min_std=min_std,
        constant_std=constant_std,
        n_draws=n_draws,
        seed=seed,
        precision=str(precision),
    )
    settings.check()
    settings = settings.plain()
    settings.suit(rows)
    if resume and checkpoint is None:
        raise ValueError("resume=True needs checkpoint=, the folder of the run to continue")
    run = _Run(_launch(accelerator, devices, strategy, precision, len(rows)), rows, progress)
    with _together():
        keeper = _Keeper(run, settings, checkpoint, checkpoint_every)
        state = keeper.read() if resume else None
        with _restoring(checkpoint):
            vae = _start(run, settings, state)
        if state is None or state.stage == "mean":
            _fit_mean(run, settings, keeper, vae, state)
            if _is_flat(run, vae) and run.fabric.is_global_zero:
                warnings.warn(_FLAT, RuntimeWarning, stacklevel=3)
            _place_centres(run, settings, vae)
        _fit_precision(run, settings, keeper, vae, state)
    return _finished(vae, X)


@door
@torch.enable_grad()
def fit_sigma_network(
    vae: VAE,
    X: Tensor | npt.ArrayLike,
    *,
    hidden: Sequence[int] | None = None,
    epochs: int = 100,
    batch_size: int = 128,
    lr: float = 3e-3,
    weight_decay: float = 1e-5,
    min_std: float = DEFAULT_MIN_STD,
    seed: int = 0,
    accelerator: str = "auto",
    devices: int = 1,
    strategy: str = "auto",
    precision: Any = "32-true",
    progress: Progress | None = None,
) -> VAE:
    """Fit an ordinary network for the standard deviation to the same encoder and mean: the baseline.

    Only the scale differs from ``vae``: a :class:`SigmaNetwork`, trained by the same bound, with encoder and
    mean frozen. Both are copies; ``vae`` is left alone.

    Parameters
    ----------
    vae : VAE
        A fitted model.
    X : array-like or Tensor
        The data (n, D) it was fitted on.
    hidden : sequence of int, optional
        Hidden layers of the network; by default the encoder's in reverse.
    epochs, batch_size, lr, weight_decay, min_std, seed, accelerator, devices, strategy, precision, progress
        As for :func:`fit_vae`; the stage is called "sigma".

    Returns
    -------
    VAE
        In evaluation mode, its parameters frozen, on the device of X.

    Raises
    ------
    ValueError
        When the data or a setting is unfit, or X has another number of columns than the model.

    References
    ----------
    The baseline of Arvanitidis et al. 2018, appendix C.

    Examples
    --------
    >>> X = torch.rand(64, 5, generator=torch.Generator().manual_seed(0))
    >>> vae = fit_vae(X, hidden=(8, 4), epochs=2, variance_epochs=2, n_centres=4)
    >>> baseline = fit_sigma_network(vae, X, epochs=2)
    >>> bool((baseline.encode(X) == vae.encode(X)).all())
    True
    """
    rows = _as_rows(_as_numbers(X, precision), images=vae.image_shape is not None)
    _check_data(vae, rows, precision)
    schedule = _Schedule(epochs, batch_size, lr, weight_decay, seed)
    schedule.check()
    layers = layers_of(vae.encoder.hidden[::-1] if hidden is None else hidden)
    check_positive(min_std=min_std)
    run = _Run(_launch(accelerator, devices, strategy, precision, len(rows)), rows, progress)
    plan = Architecture(vae.data_dim, vae.latent_dim, scale="network", scale_hidden=layers, min_std=min_std)
    scale = plan.build(seed).decoder.scale
    trained = _with_scale(vae, scale)
    descent = _Descent(run, schedule, _SIGMA, _Loss(trained), scale.parameters())
    with _together():
        for epoch in range(epochs):
            value = descent.epoch(epoch, kl_weight=1.0)
            run.report("sigma", epoch + 1, epochs, value)
    # A fresh copy: under a low precision the one that was trained with has a rounded encoder and mean.
    return _finished(_with_scale(vae, scale.to(rows.dtype)), X)


@dataclass(frozen=True)
class _Schedule:
    """What decides a descent by Adam."""

    epochs: int
    batch_size: int
    lr: float
    weight_decay: float
    seed: int

    def check(self) -> None:
        check_whole(epochs=self.epochs, batch_size=self.batch_size)
        check_positive(lr=self.lr)
        check_not_negative(weight_decay=self.weight_decay)
        check_seed(self.seed)


@dataclass(frozen=True)
class _Settings(_Schedule):
    """Everything but the data that decides the weights of :func:`fit_vae`."""

    latent_dim: int
    hidden: tuple[int, ...]
    image_shape: ImageShape | None
    channels: tuple[int, ...]
    output: Output
    variance_epochs: int
    n_centres: int
    a: float
    zeta: float
    min_std: float
    constant_std: float | None
    n_draws: int
    precision: str

    @property
    def scale_channels(self) -> tuple[int, ...]:
        """Maps of the precision's convolutions: as many layers as the mean has."""
        return (_SCALE_MAPS,) * len(self.channels)

    def architecture(self, data_dim: int) -> Architecture:
        return Architecture(
            data_dim,
            self.latent_dim,
            self.hidden,
            self.output,
            min_std=self.min_std,
            image_shape=self.image_shape,
            channels=self.channels,
        )

    def check(self) -> None:
        super().check()
        check_whole(latent_dim=self.latent_dim, variance_epochs=self.variance_epochs)
        check_whole(n_centres=self.n_centres, n_draws=self.n_draws)
        check_positive(a=self.a, zeta=self.zeta, min_std=self.min_std)
        if self.constant_std is not None:
            check_positive(constant_std=self.constant_std)
        _check_output(self.output)

    def plain(self) -> Self:
        """Turn NumPy's numbers into Python's, which JSON can say."""
        return dataclasses.replace(self, **{k: v.item() for k, v in vars(self).items() if isinstance(v, np.generic)})

    def suit(self, rows: Tensor) -> None:
        """Check the settings against the data."""
        if self.latent_dim > rows.shape[1]:
            raise ValueError(
                f"latent_dim={self.latent_dim} exceeds the {rows.shape[1]} columns of X: choose a smaller one"
            )
        spread, widest = float(rows.std(0).max()), self.zeta**-0.5
        if spread > widest:
            raise ValueError(
                f"a column of X has standard deviation {spread:.3g}, more than the decoder's noise can reach, "
                f"{widest:.3g} = zeta ** -0.5: rescale X (pixels / 255) or choose a smaller zeta"
            )


@dataclass(frozen=True)
class _Run:
    """What every stage needs: the engine, the rows (on the CPU) and the listener."""

    fabric: Fabric
    rows: Tensor
    progress: Progress | None

    def report(self, stage: str, epoch: int, epochs: int, value: float) -> None:
        if self.progress and self.fabric.is_global_zero:
            self.progress(stage, epoch, epochs, value)

    def blocks(self, rows: Tensor) -> Iterator[Tensor]:
        """Yield rows on the device, so many at a time that a block stays small."""
        size = max(1, _BLOCK // rows.shape[1])
        for first in range(0, len(rows), size):
            yield self.fabric.to_device(rows[first : first + size])

    def total(self, share: Tensor) -> Tensor:
        """Sum over processes."""
        return self.fabric.all_reduce(share, reduce_op="sum")  # type: ignore[return-value]


@dataclass(frozen=True)
class _State:
    """A run's position and what is needed to go on from there."""

    stage: str
    epoch: int
    model: dict[str, Tensor]
    adam: dict[str, Tensor]
    scaler: dict[str, Any]

    def checked(self, settings: dict[str, Any]) -> Self:
        """Refuse a position that a run with these settings is never at."""
        check_choice(_EPOCHS, stage=self.stage)
        check_whole(epoch=self.epoch)
        if self.epoch > settings[_EPOCHS[self.stage]]:
            raise ValueError(f"epoch={self.epoch} of {settings[_EPOCHS[self.stage]]}")
        return self


@contextmanager
def _restoring(folder: str | os.PathLike[str] | None) -> Iterator[None]:
    """Say in a sentence that a checkpoint holds what no run has written; that of another run is refused as it is."""
    try:
        yield
    except _OtherRunError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[-1].strip()
        raise ValueError(f"the checkpoint {os.fspath(folder or '')!r} is damaged ({reason}): {_AFRESH}") from error


class _OtherRunError(ValueError):
    """A checkpoint of other data or settings."""


class _Keeper:
    """Writes and reads the checkpoints of one run; does nothing when there is no folder."""

    def __init__(self, run: _Run, settings: _Settings, folder: str | os.PathLike[str] | None, every: int) -> None:
        check_whole(checkpoint_every=every)
        self._fabric, self._every = run.fabric, every
        self.folder = None if folder is None else Path(folder)
        self._run: dict[str, Any] = {}
        if self.folder is not None:
            check_replaceable(self.folder, _CHECKPOINT)
            self._run = {
                "settings": {**_in_json(asdict(settings)), "processes": run.fabric.world_size},
                "data": hashlib.sha256(run.rows.contiguous().numpy().data).hexdigest(),
                "shape": list(run.rows.shape),
            }

    def write(self, stage: str, epoch: int, epochs: int, vae: VAE, adam: torch.optim.Adam | None = None) -> None:
        """Write a checkpoint if the epoch (from 1) is due, or its stage's last."""
        if self.folder is None or (epoch % self._every and epoch != epochs):
            return
        if self._fabric.is_global_zero:
            scaler = self._fabric.strategy.precision.state_dict()
            about = {**self._run, "stage": stage, "epoch": epoch, "scaler": scaler}
            tensors = {"model": vae.state_dict(), "adam": _flatten(adam) if adam else {}}
            write_folder(self.folder, _CHECKPOINT, about, tensors)
        self._fabric.barrier()

    def read(self) -> _State | None:
        """Return the state to go on from; None when the run never reached its first checkpoint."""
        assert self.folder is not None
        if locate(self.folder) is None:
            return None
        about, tensors = read_folder(self.folder, _CHECKPOINT, remedy=_AFRESH)
        with _restoring(self.folder):
            self._compare(about)
            return _State(about["stage"], about["epoch"], tensors["model"], tensors["adam"], about["scaler"]).checked(
                self._run["settings"]
            )

    def _compare(self, about: dict[str, Any]) -> None:
        theirs = about["settings"]
        for name, value in self._run["settings"].items():
            if theirs.get(name) != value:
                raise _OtherRunError(
                    f"the checkpoint was made with {name}={theirs.get(name)}, this run has {name}={value}: "
                    f"use the same, or {_AFRESH}"
                )
        if about["data"] != self._run["data"]:
            raise _OtherRunError(
                f"the checkpoint was made with other data (of shape {about['shape']}; here {self._run['shape']}): "
                f"use the same, or {_AFRESH}"
            )


class _Loss(nn.Module):
    """The negative mean bound of a batch, as a module: several processes hook into its forward."""

    def __init__(self, vae: VAE) -> None:
        super().__init__()
        self.vae, self.latent_dim = vae, vae.latent_dim

    def forward(self, x: Tensor, noise: Tensor, kl_weight: float) -> Tensor:
        return -evidence_bound(self.vae, x, noise, kl_weight).mean()


class _Descent:
    """Adam on a negative mean bound, a module with a ``latent_dim``, over some of its parameters."""

    def __init__(
        self, run: _Run, schedule: _Schedule, stage: int, loss: nn.Module, parameters: Iterable[nn.Parameter]
    ) -> None:
        self._run, self._schedule, self._stage = run, schedule, stage
        self.adam = torch.optim.Adam(parameters, schedule.lr, weight_decay=schedule.weight_decay)
        self._loss, self._optimizer = run.fabric.setup(loss, self.adam)

    def restore(self, state: _State) -> None:
        """Take over the moments of an earlier run."""
        self.adam.load_state_dict(_unflatten(state.adam, self.adam))
        self._run.fabric.strategy.precision.load_state_dict(state.scaler)

    def epoch(self, epoch: int, kl_weight: float) -> float:
        """Descend once through this process's share of the rows; return the mean bound per row."""
        total, count = torch.zeros((), device=self._run.fabric.device), 0
        for index, noise in self._batches(epoch):
            x, noise = self._run.fabric.to_device((self._run.rows[index], noise))
            loss = self._loss(x, noise, kl_weight)
            self._optimizer.zero_grad()
            self._run.fabric.backward(loss)
            self._optimizer.step()
            total -= loss.detach() * len(index)
            count += len(index)
        value = float(self._run.total(total)) / (count * self._run.fabric.world_size)
        if not math.isfinite(value):
            raise RuntimeError(f"training diverged in epoch {epoch + 1}: use a smaller lr, or rescale X")
        return value

    def _batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield row numbers and noise, in shares of equal size for the processes."""
        schedule, rank, world = self._schedule, self._run.fabric.global_rank, self._run.fabric.world_size
        n = len(self._run.rows)
        order = torch.randperm(n, generator=_generator(schedule.seed, self._stage, epoch, 0), device="cpu")
        share = order[rank::world][: n // world]
        noise = torch.randn(
            len(share),
            self._loss.latent_dim,
            generator=_generator(schedule.seed, self._stage, epoch, 1 + rank),
            dtype=torch.float32,
            device="cpu",
        )
        for first in range(0, len(share), schedule.batch_size):
            batch = slice(first, first + schedule.batch_size)
            yield share[batch], noise[batch].to(self._run.rows.dtype)


def _start(run: _Run, settings: _Settings, state: _State | None) -> VAE:
    """Return the model of a checkpoint, or a random one."""
    plan = settings.architecture(run.rows.shape[1])
    if state is not None and state.stage == "precision":
        plan = dataclasses.replace(
            plan,
            scale="rbf",
            n_centres=len(state.model["decoder.scale.centres"]),
            scale_channels=settings.scale_channels,
        )
    vae = plan.build(settings.seed).to(run.rows.dtype)
    if state is not None:
        vae.load_state_dict(state.model)
        if fault := fault_of(vae):
            raise ValueError(fault)
    return run.fabric.to_device(vae)  # type: ignore[return-value]


def _fit_mean(run: _Run, settings: _Settings, keeper: _Keeper, vae: VAE, state: _State | None) -> None:
    """Stage 1: encoder and mean, with one standard deviation, learned or given, and a warm-up of the divergence."""
    epochs = settings.epochs
    scale = vae.decoder.scale
    assert isinstance(scale, ConstantScale)
    if settings.constant_std is not None:
        scale.fix(settings.constant_std)
    descent = _Descent(run, settings, _MEAN, _Loss(vae), (p for p in vae.parameters() if p.requires_grad))
    if state is not None:
        with _restoring(keeper.folder):
            descent.restore(state)
    for epoch in range(state.epoch if state else 0, epochs):
        value = descent.epoch(epoch, kl_weight=min(1.0, 3 * (epoch + 1) / epochs))
        keeper.write("mean", epoch + 1, epochs, vae, descent.adam)
        run.report("mean", epoch + 1, epochs, value)
    vae.to(run.rows.dtype)


@torch.no_grad()
def _is_flat(run: _Run, vae: VAE) -> bool:
    """Whether the mean is the same at all codes, although the data vary: the share of their variance that it spans."""
    first, means, data = run.fabric.to_device(run.rows[:1]), _Spread(), _Spread()
    for x in run.blocks(run.rows):
        means.add(vae(x) - vae(first))
        data.add(x - first)
    return data.total() > 0 and means.total() < _FLAT_SHARE * data.total()


class _Spread:
    """The sum of squares of rows about their mean, block after block."""

    def __init__(self) -> None:
        self.count, self.sum, self.squares = 0, torch.zeros((), device="cpu"), 0.0

    def add(self, rows: Tensor) -> None:
        self.count += len(rows)
        self.sum = self.sum.to(rows.device) + rows.sum(0, dtype=torch.float64)
        self.squares += float(rows.double().square().sum())

    def total(self) -> float:
        return self.squares - float(self.sum.square().sum()) / self.count


@torch.no_grad()
def _place_centres(run: _Run, settings: _Settings, vae: VAE) -> None:
    """Stage 2: k-means on the encoder's means; the RBF network takes the constant scale's place."""
    codes = torch.cat([vae.encoder(x)[0] for x in run.blocks(run.rows)])  # (n, d)
    centres, reach = placed(codes, settings.n_centres, settings.a, settings.seed)
    if settings.image_shape is None:
        rbf = RBFPrecision(centres, reach, run.rows.shape[1], zeta=settings.zeta)
    else:
        maps = settings.scale_channels[::-1]
        rbf = ConvRBFPrecision(centres, reach, settings.image_shape, maps, zeta=settings.zeta, seed=settings.seed)
    vae.decoder.scale = run.fabric.broadcast(rbf)
    distance = torch.cdist(codes, rbf.centres).min(dim=1).values
    run.report("centres", 1, 1, float(distance.mean()))


@torch.no_grad()
def _fit_precision(run: _Run, settings: _Settings, keeper: _Keeper, vae: VAE, state: _State | None) -> None:
    """Stage 3: W by maximum likelihood over fixed draws from the posterior, encoder and mean frozen."""
    rbf, epochs = vae.decoder.scale, settings.variance_epochs
    assert isinstance(rbf, RBFPrecision)
    done = state.epoch if state and state.stage == "precision" else 0
    problem = WeightLikelihood(rbf, settings.min_std, reduce=run.total)
    divergence = _add_draws(run, settings, vae, problem)
    for epoch, value in problem.climb(epochs, done):
        keeper.write("precision", epoch, epochs, vae)
        run.report("precision", epoch, epochs, value - divergence)


def _add_draws(run: _Run, settings: _Settings, vae: VAE, problem: WeightLikelihood) -> float:
    """Give the problem this process's codes and residuals; return the mean divergence from the prior."""
    rank, world = run.fabric.global_rank, run.fabric.world_size
    generator = _generator(settings.seed, _DRAWS, rank)
    total = torch.zeros((), dtype=torch.float64, device=run.fabric.device)
    for x in run.blocks(run.rows[rank::world]):
        mean, std = vae.encoder(x)  # (n, d)
        total += prior_divergence(mean, std).sum()
        for _ in range(settings.n_draws):
            z = mean + std * normal(mean.shape, mean, generator)  # (n, d)
            problem.add(z, (x - vae.decoder.mean(z)).square())
    return float(run.total(total)) / len(run.rows)


def _launch(accelerator: str, devices: int, strategy: str, precision: Any, n_rows: int) -> Fabric:
    """Start the engine: for several devices it runs the calling script again, once for each."""
    if accelerator == "auto":
        accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    if accelerator == "cpu" and str(precision) in ("16", "16-mixed"):
        raise ValueError(f"precision={precision!r} needs a GPU: on the CPU choose 'bf16-mixed' or '32-true'")
    with _quiet():
        fabric = Fabric(accelerator=accelerator, devices=devices, strategy=strategy, precision=precision)
        fabric.launch()
    if fabric.world_size > n_rows:
        raise ValueError(f"{fabric.world_size} processes for {n_rows} rows: use fewer processes")
    return fabric


@contextmanager
def _together() -> Iterator[None]:
    """Say in a sentence that another process of this training is no more, in place of the network's words for it."""
    try:
        yield
    except RuntimeError as error:
        broken = isinstance(error, torch.distributed.DistError) or "gloo" in str(error) or "NCCL" in str(error)
        if not (broken and torch.distributed.is_initialized()):
            raise
        raise RuntimeError(
            "another process of this training has ended, killed or out of memory: go on from the last checkpoint with "
            "resume=True (at the command line, --resume), or start again"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the engine's start-up lines off a user's terminal."""
    logger = logging.getLogger("lightning_fabric")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def _generator(*position: int) -> torch.Generator:
    """Return a generator of its own for each position in the training."""
    return torch.Generator().manual_seed(_seed(*position))


def _seed(*position: int) -> int:
    """Return a seed of its own for each position in the training."""
    words = np.random.SeedSequence(position).generate_state(1, np.uint64)
    return int(words[0]) >> 1  # manual_seed takes 63 bits


def _as_numbers(X: Tensor | npt.ArrayLike, precision: Any, name: str = "X") -> Tensor:
    """Return X as a CPU tensor of floats, or say what is wrong with it."""
    double = str(precision) in ("64", "64-true")
    if (X.layout != torch.strided) if isinstance(X, Tensor) else hasattr(X, "toarray"):
        dense = "to_dense" if isinstance(X, Tensor) else "toarray"
        raise ValueError(f"{name} is sparse: pass {name}.{dense}()")
    if isinstance(X, Tensor):
        X = X.detach().cpu().numpy()
    if isinstance(X, np.ma.MaskedArray) and (masked := int(np.sum(X.mask))):
        raise ValueError(
            f"{name} has {masked} masked values, which a model would take for data: fill them first, {name}.filled(...)"
        )
    if np.iscomplexobj(X):
        raise ValueError(f"{name} is complex: pass real numbers")
    try:
        with np.errstate(over="ignore"):  # what overflows float32 is reported below, as not finite
            return torch.from_numpy(np.require(X, np.float64 if double else np.float32, ["C", "W"]))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} cannot be read as rows of numbers ({error}): pass an array (n, D)") from error


def _image_shape(shape: tuple[int, ...]) -> ImageShape:
    """Return channels, height and width of images in an array of some shape, or say what is wrong with it."""
    match shape:
        case (_, width):
            side = math.isqrt(width)
            if side**2 == width:
                return 1, side, side
            raise ValueError(
                f"X has rows of {width} numbers, which are no square image: pass images (n, height, width) or "
                "(n, channels, height, width)"
            )
        case (_, height, width):
            return 1, height, width
        case (_, channels, height, width):
            if width in (1, 3, 4) and min(channels, height) > 4:
                raise ValueError(
                    f"X has shape {shape}, whose last axis looks like that of the channels: pass images "
                    "(n, channels, height, width), X.movedim(-1, 1) as a tensor"
                )
            return channels, height, width
    raise ValueError(
        f"X has shape {shape}: pass images (n, height, width) or (n, channels, height, width), or rows (n, D) of "
        "square ones"
    )


def _as_rows(numbers: Tensor, name: str = "X", *, images: bool = False) -> Tensor:
    """Return rows (n, D), or say what is wrong with them."""
    rows = numbers.flatten(1) if images and numbers.ndim > 2 else numbers
    if rows.ndim != 2:
        raise ValueError(
            f"{name} has shape {tuple(rows.shape)}: pass rows (n, D), images flattened; "
            "architecture='conv' takes images"
        )
    if len(rows) < 2 or rows.shape[1] < 1:
        raise ValueError(f"{name} has shape {tuple(rows.shape)}: at least two rows and one column are needed")
    bad = (~rows.isfinite()).nonzero()
    if len(bad):
        i, j = bad[0].tolist()
        raise ValueError(
            f"{name}[{i}, {j}] is {rows[i, j].item()}, the first of {len(bad)} values that are not finite: "
            "remove or fill them first"
        )
    return rows


def _check_data(vae: VAE, rows: Tensor, precision: Any) -> None:
    """Check that rows can be those that a model was fitted on."""
    if rows.shape[1] != vae.data_dim:
        raise ValueError(f"X has {rows.shape[1]} columns, the model {vae.data_dim}: pass the data it was fitted on")
    dtype = next(vae.parameters()).dtype
    if dtype != rows.dtype:
        raise ValueError(
            f"the model is {dtype}, precision={precision!r} means {rows.dtype}: "
            "pass the precision that the model was fitted with"
        )


def _pick_output(rows: Tensor) -> Output:
    low, high = float(rows.min()), float(rows.max())
    if low >= 0 and high <= 1:
        return "sigmoid"
    return "tanh" if low >= -1 and high <= 1 else "identity"


def _in_json(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings as they come back from JSON."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()}


def _check_output(output: Output) -> None:
    if output not in ("identity", "sigmoid", "tanh"):
        raise ValueError(f"output={output!r}: choose 'auto', 'identity', 'sigmoid' or 'tanh'")


def _with_scale(vae: VAE, scale: nn.Module) -> VAE:
    """Return a frozen copy of a model with another scale."""
    twin = copy.deepcopy(vae).requires_grad_(False)
    twin.decoder.scale = scale
    return twin


def _finished(vae: VAE, X: Any) -> VAE:
    """Return the model ready for use: evaluation mode, frozen, on the device of X."""
    return vae.to(X.device if isinstance(X, Tensor) else "cpu").eval().requires_grad_(False)


def _flatten(adam: torch.optim.Adam) -> dict[str, Tensor]:
    state = adam.state_dict()["state"]
    return {f"{i}.{name}": value for i, entry in state.items() for name, value in entry.items()}


def _unflatten(flat: dict[str, Tensor], adam: torch.optim.Adam) -> dict[str, Any]:
    """Adam's state, held against the shapes of its parameters, which Adam itself does not look at."""
    parameters = [parameter for group in adam.param_groups for parameter in group["params"]]
    wanted = {f"{i}.{name}": p.shape for i, p in enumerate(parameters) for name in ("exp_avg", "exp_avg_sq")}
    wanted |= {f"{i}.step": torch.Size() for i in range(len(parameters))}
    if wanted != {name: value.shape for name, value in flat.items()}:
        raise ValueError("the moments of its optimiser are those of other weights")
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in flat.items():
        i, name = key.split(".")
        state.setdefault(int(i), {})[name] = value
    return {"state": state, "param_groups": adam.state_dict()["param_groups"]}
