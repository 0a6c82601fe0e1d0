"""The networks that encoders and decoders are made of: dense ones, and convolutional ones for images.

All activations are smooth (tanh, sigmoid, softplus), because a metric's geodesics need two derivatives. Images are rows
of numbers outside and (channels, height, width) inside.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

from torch import Tensor, nn

Output = Literal["identity", "sigmoid", "tanh", "softplus"]

#: Channels, height and width.
ImageShape = tuple[int, int, int]

_POSTERIOR_FLOOR = 1e-4  # an encoder's standard deviation stays above this, so that its logarithm is finite
_OUTPUTS = {"identity": nn.Identity, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh, "softplus": nn.Softplus}


class MLP(nn.Sequential):
    """A dense network with tanh hidden layers.

    Parameters
    ----------
    in_features, out_features : int
        Sizes of the input and of the output.
    hidden : sequence of int
        Sizes of the hidden layers, in order; may be empty.
    output : {"identity", "sigmoid", "tanh", "softplus"}
        The last activation.

    Examples
    --------
    >>> import torch
    >>> net = MLP(2, (32, 64), 784, "sigmoid")
    >>> net(torch.zeros(5, 2)).shape
    torch.Size([5, 784])
    """

    def __init__(self, in_features: int, hidden: Sequence[int], out_features: int, output: Output = "identity") -> None:
        sizes = [in_features, *hidden]
        layers: list[nn.Module] = []
        for fan_in, fan_out in pairwise(sizes):
            layers += [nn.Linear(fan_in, fan_out), nn.Tanh()]
        super().__init__(*layers, nn.Linear(sizes[-1], out_features), _OUTPUTS[output]())
        self.in_features, self.out_features = in_features, out_features
        self.hidden, self.output = tuple(hidden), output


class Encoder(nn.Module):
    """The approximate posterior ``q(z | x) = N(mean(x), diag(std(x)^2))``.

    The first layer is shared; the mean (linear output) and the standard deviation (softplus) have their own
    layers after it.

    Parameters
    ----------
    data_dim, latent_dim : int
        Sizes D and d.
    hidden : sequence of int
        Sizes of the hidden layers, at least one.

    Examples
    --------
    >>> import torch
    >>> mean, std = Encoder(784, 2)(torch.zeros(5, 784))
    >>> mean.shape, bool((std > 0).all())
    (torch.Size([5, 2]), True)
    """

    def __init__(self, data_dim: int, latent_dim: int, hidden: Sequence[int] = (64, 32)) -> None:
        super().__init__()
        self.data_dim, self.latent_dim, self.hidden = data_dim, latent_dim, tuple(hidden)
        first, *rest = hidden
        self.shared = nn.Sequential(nn.Linear(data_dim, first), nn.Tanh())
        self.mean_net = MLP(first, rest, latent_dim)
        self.std_net = MLP(first, rest, latent_dim, "softplus")

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation: (*, D) -> (*, d), (*, d)."""
        features = self.shared(x)
        return self.mean_net(features), self.std_net(features) + _POSTERIOR_FLOOR


class ConvEncoder(nn.Module):
    """The approximate posterior of images: convolutions that halve height and width, then an :class:`Encoder`.

    Parameters
    ----------
    image_shape : tuple of int
        Channels, height and width; any sizes.
    latent_dim : int
        The dimension d of a code.
    channels : sequence of int
        Feature maps after each convolution, at least one; each has a kernel of 4 x 4 and stride 2.
    hidden : sequence of int
        Dense layers between the last maps and the code, at least one.

    Examples
    --------
    >>> import torch
    >>> encoder = ConvEncoder((1, 28, 28), 2, channels=(4, 8))
    >>> mean, std = encoder(torch.zeros(5, 784))
    >>> mean.shape, bool((std > 0).all())
    (torch.Size([5, 2]), True)
    """

    def __init__(
        self, image_shape: ImageShape, latent_dim: int, channels: Sequence[int], hidden: Sequence[int] = (64, 32)
    ) -> None:
        super().__init__()
        self.image_shape, self.channels = image_shape, tuple(channels)
        self.data_dim, self.latent_dim, self.hidden = math.prod(image_shape), latent_dim, tuple(hidden)
        shapes = pyramid(image_shape, channels)
        layers: list[nn.Module] = [nn.Unflatten(1, image_shape)]
        for (fan_in, *before), (fan_out, *_) in pairwise(shapes):
            padding = [1 + size % 2 for size in before]  # as upsampling mirrors it
            layers += [nn.Conv2d(fan_in, fan_out, 4, 2, padding), nn.Tanh()]  # type: ignore[arg-type]
        self.maps = nn.Sequential(*layers, nn.Flatten())
        self.dense = Encoder(math.prod(shapes[-1]), latent_dim, hidden)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation: (*, D) -> (*, d), (*, d)."""
        maps = self.maps(x.reshape(-1, self.data_dim))
        return self.dense(maps.reshape(*x.shape[:-1], maps.shape[-1]))  # type: ignore[no-any-return]


class ConvDecoder(nn.Sequential):
    """The mean of images: dense layers, then transposed convolutions that double height and width.

    Takes codes (N, d) and gives rows (N, D). Its layers mirror those of a :class:`ConvEncoder`.

    Parameters
    ----------
    latent_dim : int
        The dimension d of a code.
    hidden : sequence of int
        Dense layers between the code and the first maps, in order.
    channels : sequence of int
        Feature maps before each transposed convolution, in order.
    image_shape : tuple of int
        Channels, height and width; any sizes.
    output : {"identity", "sigmoid", "tanh", "softplus"}
        The last activation.

    Examples
    --------
    >>> import torch
    >>> net = ConvDecoder(2, (32, 64), (8, 4), (3, 17, 30), "sigmoid")
    >>> net(torch.zeros(5, 2)).shape
    torch.Size([5, 1530])
    """

    def __init__(
        self,
        latent_dim: int,
        hidden: Sequence[int],
        channels: Sequence[int],
        image_shape: ImageShape,
        output: Output = "identity",
    ) -> None:
        coarse, *shapes = pyramid(image_shape, channels[::-1])[::-1]
        layers: list[nn.Module] = [*MLP(latent_dim, hidden, math.prod(coarse), "tanh"), nn.Unflatten(1, coarse)]
        for before, after in pairwise([coarse, *shapes]):
            layers += [upsampling(before[0], after), nn.Tanh()]
        super().__init__(*layers[:-1], nn.Flatten(), _OUTPUTS[output]())
        self.latent_dim, self.image_shape = latent_dim, image_shape
        self.hidden, self.channels, self.output = tuple(hidden), tuple(channels), output


def pyramid(image_shape: ImageShape, channels: Sequence[int]) -> list[ImageShape]:
    """Return the shapes of an image and of the maps above it, each half as high and wide, rounded up.

    Examples
    --------
    >>> pyramid((1, 112, 91), (16, 32))
    [(1, 112, 91), (16, 56, 46), (32, 28, 23)]
    """
    shapes = [image_shape]
    for count in channels:
        _, height, width = shapes[-1]
        shapes.append((count, (height + 1) // 2, (width + 1) // 2))
    return shapes


def doubling(shape: ImageShape) -> dict[str, Any]:
    """Return where a transposed convolution with a kernel of 4 x 4 puts its results to end in ``shape``."""
    odd = tuple(size % 2 for size in shape[1:])
    return {"stride": 2, "padding": tuple(1 + extra for extra in odd), "output_padding": odd}


def upsampling(fan_in: int, shape: ImageShape) -> nn.ConvTranspose2d:
    """Return the transposed convolution from maps half as high and wide, rounded up, to ``shape``.

    The kernel is twice the stride, so that every pixel is covered by the same number of weights.

    Examples
    --------
    >>> import torch
    >>> upsampling(4, (2, 7, 10))(torch.zeros(1, 4, 4, 5)).shape
    torch.Size([1, 2, 7, 10])
    """
    return nn.ConvTranspose2d(fan_in, shape[0], 4, **doubling(shape))
