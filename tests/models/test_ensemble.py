import pytest
import torch

import oddity
from oddity.models.ensemble import fit_ensemble, load_ensemble, save_ensemble
from oddity.models.storage import save_model
from oddity.models.training import fit_sigma_network, fit_vae

TINY = {"hidden": (8, 4), "epochs": 6, "batch_size": 32}


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def same(one, two):
    a, b = one.state_dict(), two.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


@pytest.fixture(scope="module")
def noise():
    return torch.rand(70, 5, generator=rng())


@pytest.fixture(scope="module")
def vae(noise):
    return fit_vae(noise, **TINY, variance_epochs=5, n_centres=4)


@pytest.fixture(scope="module")
def arc():
    """A half circle in the plane, its angle as the code, and members trained on it."""
    angle = torch.linspace(-1.5, 1.5, 100)[:, None]
    X = torch.cat([angle.cos(), angle.sin()], 1)
    return (
        angle,
        X,
        fit_ensemble(angle, X, n_members=3, hidden=(16,), output="identity", epochs=100, batch_size=25, lr=1e-2),
    )


class TestEnsemble:
    def test_members_agree_on_the_data_and_disagree_away_from_them(self, arc):
        angle, X, ensemble = arc
        near, far = (torch.stack([f(z) for f in ensemble]) for z in (angle, 4 * angle))
        assert float((near - X).square().mean()) < 1e-3
        assert float(far[:, [0, -1]].std(0).mean()) > 4 * float(near.std(0).mean())

    def test_the_ensemble_metric_takes_it_and_measures_the_arc(self, arc):
        angle, _, ensemble = arc
        M = oddity.ensemble_metric(ensemble)
        g = M.geodesic(angle[10], angle[90]).require()
        assert float(g.length) == pytest.approx(float(angle[90] - angle[10]), rel=0.05)
        assert float(oddity.independent_members_energy(ensemble, g.points)) > float(M.energy(g.points))

    def test_a_member_does_not_depend_on_its_companions(self, vae, noise):
        three, two = (fit_ensemble(vae, noise, n_members=n, epochs=2) for n in (3, 2))
        assert same(three[:2], two)
        assert not same(three[0], three[1])

    def test_seed_decides_and_the_global_state_does_not(self, vae, noise):
        torch.manual_seed(1)
        one = fit_ensemble(vae, noise, n_members=2, epochs=2, seed=4)
        before = torch.get_rng_state()
        two, other = (fit_ensemble(vae, noise, n_members=2, epochs=2, seed=seed) for seed in (4, 5))
        assert same(one, two)
        assert not same(one, other)
        assert torch.equal(torch.get_rng_state(), before)

    def test_codes_without_deviation_are_a_vae_with_none(self, vae, noise):
        class Certain(torch.nn.Module):
            data_dim, latent_dim, hidden = 5, 2, (8, 4)

            def forward(self, x):
                mean, std = vae.encoder(x)
                return mean, 0 * std

        from oddity.models import ensemble as module

        run = module._Run(module._launch("cpu", 1, "auto", "32-true", 70), noise, None)
        certain = oddity.VAE(Certain(), vae.decoder)
        assert all(map(torch.equal, module._posterior(run, certain), module._posterior(run, vae.encode(noise))))

    def test_what_comes_back_is_frozen_and_shaped_as_the_decoder(self, vae, noise):
        heard = []
        ensemble = fit_ensemble(vae, noise, n_members=2, epochs=3, progress=lambda *event: heard.append(event))
        assert [event[:3] for event in heard] == [("ensemble", epoch, 3) for epoch in (1, 2, 3)]
        assert heard[2][3] > heard[0][3]
        assert not ensemble.training
        assert not any(p.requires_grad for p in ensemble.parameters())
        assert [str(f) for f in ensemble] == [str(vae.decoder.mean_net)] * 2
        assert same(fit_ensemble(fit_sigma_network(vae, noise, epochs=1), noise, n_members=2, epochs=3), ensemble)

    def test_double_precision(self, noise):
        ensemble = fit_ensemble(noise[:, :2], noise, n_members=1, **TINY, precision="64-true")
        assert {p.dtype for p in ensemble.parameters()} == {torch.float64}


class TestStorage:
    def test_round_trip_bit_for_bit(self, tmp_path, arc):
        angle, _, ensemble = arc
        again = load_ensemble(save_ensemble(tmp_path / "e", ensemble, info={"data": "arc"}))
        assert same(again, ensemble)
        assert again.architecture == ensemble.architecture
        assert not any(p.requires_grad for p in again.parameters())
        assert torch.equal(again[2](angle), ensemble[2](angle))
        assert len(load_ensemble(save_ensemble(tmp_path / "e", ensemble[1:3]))) == 2

    def test_a_model_is_neither_replaced_nor_read(self, tmp_path, arc, vae):
        save_model(tmp_path / "m", vae)
        with pytest.raises(ValueError, match="would be lost"):
            save_ensemble(tmp_path / "m", arc[2])
        with pytest.raises(FileNotFoundError, match="save the ensemble again"):
            load_ensemble(tmp_path / "m")

    def test_damage_is_found(self, tmp_path, arc):
        folder = save_ensemble(tmp_path / "e", arc[2])
        text = (folder / "ensemble.json").read_text()
        (folder / "ensemble.json").write_text(text.replace('"members": 3', '"members": 4'))
        with pytest.raises(ValueError, match=r"ensemble.json' is not as it was written: save the ensemble again"):
            load_ensemble(folder)
        text = text.replace('"checksum"', '"oddity"')
        (folder / "ensemble.json").write_text(text.replace('"members": 3', '"members": 4'))
        with pytest.raises(ValueError, match="do not fit the architecture"):
            load_ensemble(folder)
        (folder / "weights.safetensors").write_bytes(b"")
        with pytest.raises(ValueError, match="damaged"):
            load_ensemble(folder)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"model": torch.zeros(69, 2)}, "69 codes for 70 rows"),
        ({"model": torch.full((70, 2), float("nan"))}, r"codes\[0, 0\] is nan"),
        ({"model": torch.zeros(70, 6)}, "codes of 6 dimensions exceed the 5 columns"),
        ({"model": torch.nn.Linear(5, 2)}, "pass a VAE of this library, or the codes"),
        ({"X": torch.zeros(70, 4)}, "X has 4 columns, the model 5"),
        ({"n_members": 0}, "n_members=0"),
        ({"epochs": 0}, "epochs=0"),
        ({"hidden": ()}, "name at least one layer"),
        ({"output": "relu"}, "output='relu'"),
        ({"precision": "64-true"}, "pass the precision that the model was fitted with"),
    ],
)
def test_unfit_input_is_refused(change, sentence, vae, noise):
    arguments = {"model": vae, "X": noise, "n_members": 1, "epochs": 1} | change
    with pytest.raises(ValueError, match=sentence):
        fit_ensemble(**arguments)
