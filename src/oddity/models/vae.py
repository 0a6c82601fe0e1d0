"""Variational autoencoders with Gaussian likelihoods, and the parts that they are built of.

The decoder offers what geometry asks of a model: ``mean(z)`` and ``std(z)``. All activations are smooth
(tanh, sigmoid, softplus), because a metric's geodesics need two derivatives.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor, nn

from oddity.models.checks import check_choice, check_not_negative, check_seed, check_whole, layers_of
from oddity.models.conv_rbf import ConvRBFPrecision
from oddity.models.layers import MLP, ConvDecoder, ConvEncoder, Encoder, ImageShape, Output
from oddity.models.rbf import DEFAULT_MIN_STD, RBFPrecision
from oddity.numerics.ambient import doors
from oddity.numerics.expansion import Expansion, layered_expansion

Scale = Literal["constant", "rbf", "network"]

_BLOCK = 1 << 22  # numbers in one block of a likelihood over prior draws: 32 MB in float64


@doors
class ConstantScale(nn.Module):
    """One learned standard deviation, the same for every output and every code.

    ``std = sqrt(exp(log_std)^2 + min_std^2)``: the decoder's scale while its mean is being trained, so that a
    poor mean cannot be explained away by a large variance.

    Parameters
    ----------
    out_features : int
        The number of outputs D.
    min_std : float
        The floor: the observation noise.

    Examples
    --------
    >>> scale = ConstantScale(3)
    >>> scale(torch.zeros(5, 2)).shape
    torch.Size([5, 3])
    """

    def __init__(self, out_features: int, min_std: float = DEFAULT_MIN_STD) -> None:
        super().__init__()
        self.out_features, self.min_std = out_features, min_std
        self.log_std = nn.Parameter(torch.tensor(-1.0))

    def fix(self, std: float) -> None:
        """Give ``log_std`` the value of a standard deviation (the floor comes on top), and learn it no longer."""
        self.log_std = nn.Parameter(torch.full_like(self.log_std, math.log(std)), requires_grad=False)

    def std(self, z: Tensor) -> Tensor:
        """Return the standard deviation: (*, d) -> (*, D)."""
        std = (self.log_std.exp().square() + self.min_std**2).sqrt()
        # The product with z keeps a (zero) dependence on it, which every mode of differentiation understands.
        return 0 * z[..., :1] + std.expand(self.out_features)

    def forward(self, z: Tensor) -> Tensor:
        """Return the standard deviation, as :meth:`std`."""
        return self.std(z)


@doors
class SigmaNetwork(nn.Module):
    """An ordinary network for the standard deviation, ``softplus(net(z)) + min_std``: the baseline.

    Nothing makes it grow away from the data, and it does not: this is what :class:`RBFPrecision` repairs.

    Parameters
    ----------
    latent_dim, out_features : int
        Sizes d and D.
    hidden : sequence of int
        Sizes of the hidden layers, in order.
    min_std : float
        The floor: the observation noise.

    References
    ----------
    The baseline of Arvanitidis et al. 2018, appendix C.

    Examples
    --------
    >>> scale = SigmaNetwork(2, (32, 64), 3)
    >>> bool((scale(torch.zeros(5, 2)) > scale.min_std).all())
    True
    """

    def __init__(
        self, latent_dim: int, hidden: Sequence[int], out_features: int, min_std: float = DEFAULT_MIN_STD
    ) -> None:
        super().__init__()
        self.net = MLP(latent_dim, hidden, out_features, "softplus")
        self.min_std = min_std

    def std(self, z: Tensor) -> Tensor:
        """Return the standard deviation: (*, d) -> (*, D)."""
        return self.net(z) + self.min_std  # type: ignore[no-any-return]

    def forward(self, z: Tensor) -> Tensor:
        """Return the standard deviation, as :meth:`std`."""
        return self.std(z)


@doors
class GaussianDecoder(nn.Module):
    """The likelihood ``p(x | z) = N(mean(z), diag(std(z)^2))``.

    Parameters
    ----------
    mean_net : Module
        Maps codes (N, d) to means (N, D).
    scale : Module
        Maps codes (*, d) to **standard deviations** (*, D): :class:`ConstantScale`, :class:`RBFPrecision` or
        :class:`SigmaNetwork`, or your own.

    References
    ----------
    Kingma, Welling, "Auto-Encoding Variational Bayes", ICLR 2014, appendix C.2.

    Examples
    --------
    >>> decoder = GaussianDecoder(MLP(2, (8,), 3), ConstantScale(3))
    >>> mean, std = decoder(torch.zeros(5, 2))
    >>> mean.shape, std.shape
    (torch.Size([5, 3]), torch.Size([5, 3]))
    """

    def __init__(self, mean_net: nn.Module, scale: nn.Module) -> None:
        super().__init__()
        self.mean_net, self.scale = mean_net, scale

    def mean(self, z: Tensor) -> Tensor:
        """Return the mean: (*, d) -> (*, D)."""
        mean: Tensor = self.mean_net(z.reshape(-1, z.shape[-1]))  # convolutions know one batch axis
        return mean.reshape(*z.shape[:-1], *mean.shape[1:])

    def std(self, z: Tensor) -> Tensor:
        """Return the standard deviation: (*, d) -> (*, D)."""
        return self.scale(z)  # type: ignore[no-any-return]

    @property
    def expand_mean(self) -> Callable[[Tensor], Expansion] | None:
        """Closed-form expansion of the mean, (N, d), where its layers are known; else None."""
        own = type(self).mean is GaussianDecoder.mean  # a subclass with a mean of its own has lost the closed form
        return layered_expansion(self.mean_net) if own else None

    @property
    def expand_std(self) -> Callable[[Tensor], Expansion] | None:
        """Closed-form expansion of the standard deviation, (N, d), where the scale has one; else None."""
        own = type(self).std is GaussianDecoder.std
        return getattr(self.scale, "expand_std", None) if own else None

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation."""
        return self.mean(z), self.std(z)


@doors
class VAE(nn.Module):
    """A variational autoencoder: an :class:`Encoder`, a :class:`GaussianDecoder` and the prior N(0, I).

    Every method takes any leading shape, checks what it is given, and keeps its dtype and device. A convolutional
    model takes images (*, channels, height, width), those of one channel as (*, height, width) too, as well as rows
    (*, D); what it gives are rows.

    Parameters
    ----------
    encoder : Encoder or ConvEncoder
        Or any module ``x -> (mean, std)`` with ``data_dim`` and ``latent_dim``.
    decoder : GaussianDecoder
        Or any module with ``mean(z)`` and ``std(z)``.

    Raises
    ------
    ValueError
        From every method, when data have another size, dtype or device than the model, or are not finite.

    References
    ----------
    Kingma, Welling, "Auto-Encoding Variational Bayes", ICLR 2014.

    Examples
    --------
    >>> vae = Architecture(data_dim=6, latent_dim=2, hidden=(8, 4)).build()
    >>> x = torch.zeros(5, 6)
    >>> vae.encode(x).shape, vae.elbo(x).shape
    (torch.Size([5, 2]), torch.Size([5]))
    """

    def __init__(self, encoder: Encoder | ConvEncoder, decoder: GaussianDecoder) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    @property
    def latent_dim(self) -> int:
        """The dimension d of a code."""
        return self.encoder.latent_dim

    @property
    def data_dim(self) -> int:
        """The dimension D of a data point."""
        return self.encoder.data_dim

    @property
    def image_shape(self) -> ImageShape | None:
        """Channels, height and width of the images that a convolutional model takes; None for another model."""
        return getattr(self.encoder, "image_shape", None)

    def encode(self, x: Tensor) -> Tensor:
        """Return the posterior mean, the same at every call: (*, D) -> (*, d).

        Examples
        --------
        >>> vae = Architecture(data_dim=6, latent_dim=2).build()
        >>> vae.encode(torch.zeros(5, 6)).shape
        torch.Size([5, 2])
        """
        return self.posterior(x)[0]

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the posterior's mean and standard deviation: (*, D) -> (*, d), (*, d).

        Raises
        ------
        ValueError
            When ``x`` has another last dimension, dtype or device than the model, or is not finite.

        Examples
        --------
        >>> vae = Architecture(data_dim=6, latent_dim=2).build()
        >>> mean, std = vae.posterior(torch.zeros(5, 6))
        >>> mean.shape, bool((std > 0).all())
        (torch.Size([5, 2]), True)
        """
        return self.encoder(self._admitted(x))  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        """Return the reconstruction, the decoder's mean at the posterior mean: (*, D) -> (*, D).

        Examples
        --------
        >>> vae = Architecture(data_dim=6, latent_dim=2).build()
        >>> vae(torch.zeros(5, 6)).shape
        torch.Size([5, 6])
        """
        return self.decoder.mean(self.encode(x))

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Draw n data points from the model, noise included: (n, D).

        Raises
        ------
        ValueError
            When n is not a whole number from 0.

        Examples
        --------
        >>> vae = Architecture(data_dim=6, latent_dim=2).build()
        >>> vae.sample(5, generator=torch.Generator().manual_seed(0)).shape
        torch.Size([5, 6])
        """
        check_whole(0, n=n)
        like = next(self.parameters())
        z = normal((n, self.latent_dim), like, generator)
        mean, std = self.decoder(z)
        return mean + std * normal(mean.shape, like, generator)  # type: ignore[no-any-return]

    def elbo(self, x: Tensor, generator: torch.Generator | None = None, kl_weight: float = 1.0) -> Tensor:
        """Return one-draw estimates of ``E_q log p(x | z) - kl_weight KL(q(z | x) | p(z))``: (*, D) -> (*,).

        Parameters
        ----------
        x : Tensor
            Data (*, D).
        generator : torch.Generator, optional
            Draws the noise of z.
        kl_weight : float
            1 for the bound itself; smaller while warming up.

        Raises
        ------
        ValueError
            As :meth:`posterior`.

        Examples
        --------
        >>> vae = Architecture(data_dim=6, latent_dim=2).build()
        >>> vae.elbo(torch.zeros(5, 6), torch.Generator().manual_seed(0)).shape
        torch.Size([5])
        """
        x = self._admitted(x)
        noise = normal((*x.shape[:-1], self.latent_dim), x, generator)
        return evidence_bound(self, x, noise, kl_weight)

    @torch.no_grad()
    def log_likelihood(self, x: Tensor, n_samples: int = 10_000, generator: torch.Generator | None = None) -> Tensor:
        """Estimate ``log p(x) = log E_{z ~ p} p(x | z)`` from draws of the prior: (*, D) -> (*,).

        The logarithm of a mean of ``n_samples`` densities for each row, by a running log-sum-exp over blocks
        of draws; memory stays bounded whatever the number of rows and draws. The squares are expanded in
        float64, which makes them matrix products without losing digits. All rows share the draws.

        Parameters
        ----------
        x : Tensor
            Data (*, D).
        n_samples : int
            Number of draws; the estimate of the logarithm is biased low when there are few.
        generator : torch.Generator, optional
            Draws from the prior.

        Raises
        ------
        ValueError
            As :meth:`posterior`, or when ``n_samples`` < 1.

        Examples
        --------
        It is never below the bound, up to the noise of both:

        >>> vae, rng = Architecture(data_dim=6, latent_dim=2).build(), torch.Generator().manual_seed(0)
        >>> x = torch.zeros(1, 6)
        >>> bound = torch.stack([vae.elbo(x, rng) for _ in range(100)]).mean()
        >>> bool(vae.log_likelihood(x, generator=rng) > bound.detach())
        True
        """
        x = self._admitted(x)
        check_whole(n_samples=n_samples)
        rows = x.reshape(-1, self.data_dim).double()
        total = rows.new_full((len(rows),), -math.inf)
        draws = normal((n_samples, self.latent_dim), x, generator)
        for z in torch.split(draws, max(1, _BLOCK // max(self.data_dim, len(rows)))):
            log_density = _gaussian_table(rows, *self.decoder(z))  # (n, draws)
            total = torch.logaddexp(total, log_density.logsumexp(dim=1))
        return (total - math.log(n_samples)).to(x.dtype).reshape(x.shape[:-1])

    def _admitted(self, x: Tensor) -> Tensor:
        """Return data as rows (*, D), or say what is wrong with them."""
        like, image = next(self.parameters()), self.image_shape or ()
        if not isinstance(x, Tensor):
            raise ValueError(f"x is a {type(x).__name__}: pass torch.as_tensor(x, dtype={like.dtype})")
        for shape in (image, image[1:] if image[:1] == (1,) else ()):
            if shape and x.shape[-len(shape) :] == shape:
                x = x.reshape(*x.shape[: -len(shape)], self.data_dim)
        if x.ndim < 1 or x.shape[-1] != self.data_dim:
            raise ValueError(
                f"x has shape {tuple(x.shape)}, the model takes (*, {self.data_dim})"
                + (f" or images (*, {', '.join(map(str, image))}): pass those" if image else ": pass rows")
                + " of the length it was fitted on"
            )
        if x.dtype != like.dtype:
            raise ValueError(f"x is {x.dtype}, the model {like.dtype}: pass x.to({like.dtype}) or convert the model")
        if x.device != like.device:
            raise ValueError(f"x is on {x.device}, the model on {like.device}: pass x.to({str(like.device)!r})")
        if not bool(torch.isfinite(x).all()):
            count = int((~torch.isfinite(x)).sum())
            raise ValueError(f"x has {count} values that are not finite: remove or fill them first")
        return x


@doors
@dataclass(frozen=True)
class Architecture:
    """The description from which a :class:`VAE` can be built again: what is stored beside its weights.

    Attributes
    ----------
    data_dim, latent_dim : int
        Sizes D and d.
    hidden : tuple of int
        Hidden layers of the encoder; the decoder has them in reverse.
    output : {"identity", "sigmoid", "tanh"}
        Last activation of the decoder's mean.
    scale : {"constant", "rbf", "network"}
        :class:`ConstantScale`, :class:`RBFPrecision` or :class:`SigmaNetwork`.
    scale_hidden : tuple of int
        Hidden layers of a :class:`SigmaNetwork`, in order.
    n_centres : int
        Centres of an :class:`RBFPrecision`.
    min_std : float
        Floor of a constant or network scale.
    image_shape : tuple of int, optional
        Channels, height and width of the data of a convolutional model (:class:`ConvEncoder`, :class:`ConvDecoder`).
    channels : tuple of int
        Its feature maps, from the image upwards; the decoder has them in reverse.
    scale_channels : tuple of int
        Maps of a :class:`ConvRBFPrecision`, from the image upwards; empty for a plain :class:`RBFPrecision`.

    Examples
    --------
    >>> plan = Architecture(data_dim=6, latent_dim=2, hidden=(8, 4), scale="rbf", n_centres=3)
    >>> Architecture.of(plan.build()) == plan
    True
    """

    data_dim: int
    latent_dim: int
    hidden: tuple[int, ...] = (64, 32)
    output: Output = "identity"
    scale: Scale = "constant"
    scale_hidden: tuple[int, ...] = ()
    n_centres: int = 0
    min_std: float = DEFAULT_MIN_STD
    image_shape: ImageShape | None = None
    channels: tuple[int, ...] = ()
    scale_channels: tuple[int, ...] = ()

    def build(self, seed: int = 0) -> VAE:
        """Return a model with random weights; the global random state is left alone.

        Raises
        ------
        ValueError
            When a field is of another kind than it is said to be above.
        """
        self._check()
        check_seed(seed, 1 << 63)  # as many as the members of an ensemble have
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int(seed))
            return VAE(self._build_encoder(), GaussianDecoder(self._build_mean(), self._build_scale()))

    def _check(self) -> None:
        check_whole(data_dim=self.data_dim, latent_dim=self.latent_dim)
        check_whole(int(self.scale == "rbf"), n_centres=self.n_centres)
        check_not_negative(min_std=self.min_std)
        check_choice(get_args(Output), output=self.output)
        check_choice(get_args(Scale), scale=self.scale)
        for name, least in {"hidden": 1, "scale_hidden": 0, "channels": 0, "scale_channels": 0}.items():
            layers_of(getattr(self, name), name, least)
        if self.image_shape is not None:
            sizes = layers_of(self.image_shape, "image_shape")
            if len(sizes) != 3 or math.prod(sizes) != self.data_dim or not self.channels:
                raise ValueError(
                    f"image_shape={sizes} with data_dim={self.data_dim} and channels={self.channels}: name channels, "
                    "height and width, whose product is data_dim, and the maps of at least one convolution"
                )

    def _build_encoder(self) -> Encoder | ConvEncoder:
        if self.image_shape is None:
            return Encoder(self.data_dim, self.latent_dim, self.hidden)
        return ConvEncoder(self.image_shape, self.latent_dim, self.channels, self.hidden)

    def _build_mean(self) -> MLP | ConvDecoder:
        hidden, channels = self.hidden[::-1], self.channels[::-1]
        if self.image_shape is None:
            return MLP(self.latent_dim, hidden, self.data_dim, self.output)
        return ConvDecoder(self.latent_dim, hidden, channels, self.image_shape, self.output)

    def _build_scale(self) -> nn.Module:
        match self.scale:
            case "constant":
                return ConstantScale(self.data_dim, self.min_std)
            case "network":
                return SigmaNetwork(self.latent_dim, self.scale_hidden, self.data_dim, self.min_std)
            case "rbf":
                centres, ones = torch.zeros(self.n_centres, self.latent_dim), torch.ones(self.n_centres)
                if self.image_shape is None or not self.scale_channels:
                    return RBFPrecision(centres, ones, self.data_dim)
                return ConvRBFPrecision(centres, ones, self.image_shape, self.scale_channels[::-1])

    @classmethod
    def of(cls, vae: VAE) -> Self:
        """Describe a model made of this module's parts.

        Raises
        ------
        ValueError
            When a part is of another class, or the decoder's mean does not mirror the encoder.
        """
        encoder, mean_net, scale = vae.encoder, vae.decoder.mean_net, vae.decoder.scale
        about: dict[str, Any]
        if type(encoder) is Encoder and type(mean_net) is MLP:
            images: dict[str, Any] = {}
        elif type(encoder) is ConvEncoder and type(mean_net) is ConvDecoder:
            images = _maps(encoder, encoder.channels)
        else:
            raise ValueError(
                f"a model of {type(encoder).__name__} and {type(mean_net).__name__} has no description: "
                "only Encoder and MLP, ConvEncoder and ConvDecoder have; store your own parts with safetensors"
            )
        match scale:
            case ConstantScale():
                about = {"scale": "constant", "min_std": scale.min_std}
            case SigmaNetwork():
                about = {"scale": "network", "min_std": scale.min_std, "scale_hidden": scale.net.hidden}
            case ConvRBFPrecision():
                about = {"scale": "rbf", "n_centres": len(scale.centres), "scale_channels": scale.channels[::-1]}
            case RBFPrecision():
                about = {"scale": "rbf", "n_centres": len(scale.centres)}
            case _:
                raise ValueError(
                    f"a scale of class {type(scale).__name__} has no description: "
                    "only ConstantScale, RBFPrecision and SigmaNetwork have"
                )
        if mean_net.hidden != encoder.hidden[::-1]:
            raise ValueError(
                f"the decoder's hidden layers {mean_net.hidden} do not mirror the encoder's {encoder.hidden}"
            )
        if isinstance(mean_net, ConvDecoder) and images != _maps(mean_net, mean_net.channels[::-1]):
            raise ValueError(f"the decoder's maps {mean_net.channels} do not mirror the encoder's {encoder.channels}")
        return cls(
            data_dim=encoder.data_dim,
            latent_dim=encoder.latent_dim,
            hidden=encoder.hidden,
            output=mean_net.output,
            **images,
            **about,
        )


def _maps(net: ConvEncoder | ConvDecoder, channels: tuple[int, ...]) -> dict[str, Any]:
    return {"image_shape": net.image_shape, "channels": channels}


def evidence_bound(vae: VAE, x: Tensor, noise: Tensor, kl_weight: float) -> Tensor:
    """Return :meth:`VAE.elbo` for given standard-normal noise (*, d), unchecked: (*, D) -> (*,)."""
    mean, std = vae.encoder(x)
    expected = gaussian_log_density(x, *vae.decoder(mean + std * noise))
    return expected - kl_weight * prior_divergence(mean, std)


def gaussian_log_density(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Return ``log N(x; mean, diag(std^2))``: three of (*, D) -> (*,)."""
    scaled = (x - mean) / std
    return -(0.5 * scaled.square() + std.log()).sum(-1) - 0.5 * math.log(2 * math.pi) * x.shape[-1]


def prior_divergence(mean: Tensor, std: Tensor) -> Tensor:
    """Return ``KL(N(mean, diag(std^2)) | N(0, I))``: two of (*, d) -> (*,)."""
    return 0.5 * (mean.square() + std.square() - 1 - 2 * std.log()).sum(-1)


def normal(shape: Sequence[int], like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw standard normals on the generator's device; return them in ``like``'s dtype, on its device."""
    device = like.device if generator is None else generator.device
    return torch.randn(tuple(shape), generator=generator, device=device, dtype=like.dtype).to(like.device)


def _gaussian_table(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Return ``log N(x_i; mean_j, diag(std_j^2))`` in float64: (n, D), (m, D), (m, D) -> (n, m)."""
    mean, precision = mean.double(), std.double() ** -2
    square = x.square() @ precision.T - 2 * x @ (precision * mean).T + (precision * mean.square()).sum(-1)
    log_det = precision.log().sum(-1)
    return 0.5 * (log_det - square - math.log(2 * math.pi) * x.shape[-1])
