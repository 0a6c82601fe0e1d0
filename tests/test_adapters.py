"""Models of other libraries, as they come: their metric is that of their own function, their geodesics converge.

``make adapters`` installs the libraries beside Oddity and runs this file; elsewhere it is skipped.
"""

import contextlib
import importlib
import importlib.metadata
import logging
import re
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.func import jacrev, vmap

import oddity

pytestmark = pytest.mark.slow


def library(name: str) -> ModuleType:
    """A library, or a skip with the reason why it is not here; some break on import for reasons of their own."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(name)
    except Exception as error:
        pytest.skip(f"{name} cannot be imported ({type(error).__name__}: {error}); make adapters installs it")


@contextlib.contextmanager
def their_own_way():
    """Others' warnings, seeds and logs stay out of the tests."""
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")
        logging.disable()
        torch.manual_seed(0)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


def readme(kind: str, **names: object) -> dict[str, Any]:
    """Run the README's lines for a kind of model, given its names; all names afterwards."""
    text = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    (lines,) = re.findall(rf"```python\n(# {kind}.*?)```", text, re.DOTALL)
    names |= {"oddity": oddity, "torch": torch}
    exec(lines, names)
    return names


def digits(n: int = 400) -> Tensor:
    return torch.as_tensor(load_digits().images[:n] / 16, dtype=torch.float32)[:, None]


def codes(n: int, d: int) -> Tensor:
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def assert_metric_is_of(f, M: oddity.Manifold, z: Tensor) -> None:
    """The metric against whole Jacobians in reverse mode."""
    J = vmap(jacrev(lambda row: f(row[None])[0].flatten()))(z)
    torch.testing.assert_close(M.metric(z), J.mT @ J, rtol=1e-5, atol=1e-9)


def assert_uncertainty_grows(decoder, z: Tensor, X: Tensor) -> None:
    u = oddity.add_uncertainty(decoder, z, X)
    assert u.std_off_data > 3 * u.std_on_data


def frozen(model: nn.Module) -> nn.Module:
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize("kind", ["VAE", "AE", "VAEGAN"])
def test_pythae(kind: str, tmp_path) -> None:
    """A model trained by pythae's own trainer; its decoder returns a mapping of one tensor."""
    library("pythae.models")
    from pythae import models, trainers
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder
    from pythae.pipelines import TrainingPipeline

    class Decoder(BaseDecoder):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 64), nn.Sigmoid())

        def forward(self, z: Tensor) -> ModelOutput:
            return ModelOutput(reconstruction=self.net(z).reshape(-1, 1, 8, 8))

    X = digits()
    with their_own_way():
        config = getattr(models, f"{kind}Config")(input_dim=(1, 8, 8), latent_dim=2)
        schedule = {"VAEGAN": trainers.CoupledOptimizerAdversarialTrainerConfig}.get(kind, trainers.BaseTrainerConfig)
        model = getattr(models, kind)(config, decoder=Decoder())
        train = TrainingPipeline(
            model=model, training_config=schedule(output_dir=str(tmp_path), num_epochs=3, no_cuda=True)
        )
        train(train_data=X.numpy())
    model = frozen(model.cpu())
    with pytest.raises(ValueError, match="has an encoder too"):
        oddity.expected_metric(model)
    found = readme("pythae", model=model, X=X)
    found["g"].require()
    z = found["z"]
    assert_uncertainty_grows(model.decoder, z, X)
    model.double()
    assert_metric_is_of(
        lambda z: model.decoder(z).reconstruction, oddity.expected_metric(model.decoder), z[:5].double()
    )


def test_diffusers() -> None:
    """An image autoencoder whose codes are images too: attention and group norm in one network."""
    AutoencoderKL = library("diffusers").AutoencoderKL
    with their_own_way():
        model = frozen(
            AutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * 2,
                up_block_types=("UpDecoderBlock2D",) * 2,
                block_out_channels=(8, 16),
                latent_channels=2,
                norm_num_groups=4,
            )
        ).double()
    with pytest.raises(ValueError, match=r"give the part that maps codes to data, e\.g\. model\.decode"):
        oddity.expected_metric(model)
    M = readme("diffusers", model=model)["M"]
    z = codes(2, 32)
    with torch.no_grad():
        columns = [
            (
                model.decode((z + h).unflatten(1, (2, 4, 4))).sample
                - model.decode((z - h).unflatten(1, (2, 4, 4))).sample
            )
            for h in 1e-5 * torch.eye(32, dtype=z.dtype)
        ]
    J = torch.stack(columns, -1).flatten(1, 3) / 2e-5
    torch.testing.assert_close(M.metric(z), J.mT @ J, rtol=1e-5, atol=1e-8)
    assert M.differential.mode != "jacrev"
    plane = codes(2, 32)
    g = oddity.expected_metric(lambda t: model.decode((t @ plane).unflatten(1, (2, 4, 4)))).geodesic(*codes(2, 2))
    assert g.converged, g.why


def test_a_plain_gan_generator() -> None:
    """A DCGAN: codes shaped as images of one pixel, batch norm, no encoder; codes found by inversion."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        generator = nn.Sequential(
            nn.ConvTranspose2d(3, 16, 4, 1, 0, bias=False),
            nn.BatchNorm2d(16),
            nn.Softplus(),
            nn.ConvTranspose2d(16, 1, 4, 2, 1),
            nn.Sigmoid(),
        )
        with torch.no_grad():
            generator(torch.randn(256, 3, 1, 1))  # batch statistics
    frozen(generator)
    truth = codes(200, 3).float()
    X = generator(truth[..., None, None])
    z = inverted(generator, X, truth + 0.1)
    readme("a GAN", generator=generator, X=X, z=z)["g"].require()
    f = lambda z: generator(z[..., None, None])  # noqa: E731
    assert_uncertainty_grows(f, z, X)
    generator.double()
    assert_metric_is_of(f, oddity.expected_metric(f), z[:5].double())


def inverted(generator: nn.Module, X: Tensor, start: Tensor, steps: int = 50) -> Tensor:
    z = start.clone().requires_grad_()
    adam = torch.optim.Adam([z], 0.05)
    for _ in range(steps):
        adam.zero_grad()
        (generator(z[..., None, None]) - X).square().sum().backward()
        adam.step()
    return z.detach()


@pytest.mark.parametrize("kind", ["NSF", "MAF"])
def test_zuko(kind: str) -> None:
    """A normalising flow, from its base space to the data; with a context, given by keyword."""
    flows = library("zuko").flows
    context = {"NSF": None, "MAF": torch.full((1, 2), 0.5, dtype=torch.float64)}[kind]
    with their_own_way():
        build = getattr(flows, kind)
        flow = frozen(build(3, 0 if context is None else 2, transforms=2, hidden_features=(16, 16), activation=nn.Tanh))
        flow.double()

    def data(z: Tensor, c: Tensor | None = None) -> Tensor:
        return flow(c).transform.inv(z)

    z, given = codes(6, 3), {} if context is None else {"c": context}
    M = oddity.expected_metric(data, **given) if given else readme("zuko", flow=flow)["M"]
    with torch.no_grad():
        J = torch.stack(
            [(data(z + h, context) - data(z - h, context)) / 2e-6 for h in 1e-6 * torch.eye(3, dtype=z.dtype)],
            -1,
        )
    torch.testing.assert_close(M.metric(z), J.mT @ J, rtol=1e-5, atol=1e-8)
    assert M.geodesic(z[:3], z[3:]).converged.all()


def cells() -> tuple[Tensor, Tensor]:
    """Counts of 700 blood cells and 765 genes, and their types, from the data that scanpy carries."""
    library("scanpy")
    files = importlib.metadata.distribution("scanpy").files or []
    path = next(file for file in files if file.name == "10x_pbmc68k_reduced.h5ad").locate()
    with their_own_way():
        data = library("anndata").read_h5ad(path)
    scaled = torch.as_tensor(data.raw.X.toarray()).expm1()  # each cell's counts times a number of its own
    one = torch.where(scaled > 0, scaled, torch.inf).amin(1, keepdim=True)
    return (scaled / one).round(), torch.as_tensor(data.obs.bulk_labels.cat.codes.to_numpy().copy())


def test_scvi() -> None:
    """Counts have no mean-and-noise surface: their negative binomial law has the metric of Fisher and Rao."""
    scvi = library("scvi")
    counts, _ = cells()
    with their_own_way():
        data = library("anndata").AnnData(counts.numpy())
        scvi.model.SCVI.setup_anndata(data)
        model = scvi.model.SCVI(data, n_latent=5, n_hidden=32, gene_likelihood="nb")
        model.train(max_epochs=20, accelerator="cpu", enable_progress_bar=False, logger=False)
        z = torch.as_tensor(model.get_latent_representation())
    frozen(model.module)

    depth = float(counts.sum(1).log().mean())
    names = readme("scVI", model=model, z=z, depth=depth)
    law, M = names["law"], names["M"]
    assert names["g"].converged, names["g"].why
    with pytest.raises(ValueError, match=r"NegativeBinomial.*oddity\.fisher_metric"):
        oddity.expected_metric(law, library=depth).metric(z[:2])
    g = M.geodesic(z[:4], z[4:8], init=oddity.Roadmap(M, z[::4]))
    assert g.converged.all(), g.why
    model.module.double()
    z = z[:5].double()
    with torch.no_grad():
        h = 1e-5 * torch.eye(5, dtype=z.dtype)
        J = torch.stack([(law(z + e, depth).mean - law(z - e, depth).mean) / 2e-5 for e in h], -1)
        mean, theta = law(z, depth).mean[..., None], law(z, depth).total_count[..., None]
    expected = J.mT @ (theta / (mean * (theta + mean)) * J)
    torch.testing.assert_close(M.metric(z), expected, rtol=1e-5, atol=1e-6)
