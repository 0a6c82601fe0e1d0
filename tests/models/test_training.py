import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
import torch

import oddity
from oddity.models import storage
from oddity.models.rbf import RBFPrecision
from oddity.models.training import fit_sigma_network, fit_vae
from oddity.models.vae import ConstantScale, SigmaNetwork

TINY = {"hidden": (8, 4), "epochs": 6, "variance_epochs": 5, "n_centres": 4, "batch_size": 32}


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def noise():
    return torch.rand(70, 5, generator=rng())


def ring(n=400):
    """A noisy ring, embedded in ten dimensions, in [-1, 1]."""
    angle = 2 * torch.pi * torch.rand(n, generator=rng(1))
    plane = torch.stack([angle.cos(), angle.sin()], dim=1)
    wide = plane @ torch.randn(2, 10, generator=rng(2)) + 0.05 * torch.randn(n, 10, generator=rng(3))
    return wide / wide.abs().max()


@pytest.fixture(scope="module")
def trained():
    X, heard = ring(), []
    vae = fit_vae(X, epochs=60, hidden=(16, 16), n_centres=16, progress=lambda *event: heard.append(event))
    return X, vae, heard


def same(one, two):
    a, b = one.state_dict(), two.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


class TestFit:
    def test_model_is_ready_for_use(self, trained):
        X, vae, _ = trained
        assert not vae.training
        assert not any(p.requires_grad for p in vae.parameters())
        assert {p.dtype for p in vae.parameters()} == {torch.float32}
        assert isinstance(vae.decoder.scale, RBFPrecision)
        assert vae.decoder.mean_net.output == "tanh"  # the data lie in [-1, 1]
        assert vae.encode(X).numpy().shape == (400, 2)

    def test_it_learns(self, trained):
        X, vae, heard = trained
        mean = [event[3] for event in heard if event[0] == "mean"]
        precision = [event[3] for event in heard if event[0] == "precision"]
        assert mean[-1] > mean[10] + 1  # past the warm-up's first steps
        assert all(late >= early - 1e-6 for early, late in pairwise(precision))
        assert (vae(X) - X).square().mean() < 0.2 * X.var()

    def test_progress_tells_every_epoch(self, trained):
        told = [event[:3] for event in trained[2]]
        mean = [("mean", i, 60) for i in range(1, 61)]
        assert told == [*mean, ("centres", 1, 1), *(("precision", i, 50) for i in range(1, 51))]

    def test_rbf_std_grows_off_the_data_and_the_sigma_network_does_not(self, trained):
        X, vae, _ = trained
        baseline = fit_sigma_network(vae, X, epochs=20)
        z = vae.encode(X)
        angle = torch.linspace(0, 2 * torch.pi, 33)[:-1]
        far = 30 * torch.stack([angle.cos(), angle.sin()], dim=1)
        limit = float(vae.decoder.scale.zeta[0]) ** -0.5
        torch.testing.assert_close(vae.decoder.std(far), torch.full((32, 10), limit))
        assert bool((vae.decoder.std(z) < limit / 5).all())
        # an ordinary network's is arbitrary: bounded by a few times that at the data, hardly larger in places
        ratio = baseline.decoder.std(far) / baseline.decoder.std(z).mean(0)
        assert ratio.min() < 2
        assert baseline.decoder.std(far).max() < limit / 5

    def test_precision_beats_the_constant_scale(self, trained):
        X, vae, heard = trained
        mean = [event[3] for event in heard if event[0] == "mean"]
        bound = torch.stack([vae.elbo(X, rng(i)).mean() for i in range(20)]).mean()
        assert bound > mean[-1] - 0.5

    def test_seed_decides(self, noise):
        one, two, other = (fit_vae(noise, **TINY, seed=seed) for seed in (1, 1, 2))
        assert same(one, two)
        assert not same(one, other)

    def test_global_random_states_are_neither_read_nor_changed(self, noise):
        torch.manual_seed(1)
        one = fit_vae(noise, **TINY)
        before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
        two = fit_sigma_network(fit_vae(noise, **TINY), noise, epochs=1)
        assert torch.equal(torch.get_rng_state(), before[0])
        assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
        assert random.getstate() == before[2]
        assert same(one.encoder, two.encoder)

    def test_numpy_lists_and_integers(self, noise):
        expected = fit_vae(noise, **TINY)
        array = noise.numpy().copy()
        array.setflags(write=False)
        assert same(fit_vae(array, **TINY), expected)
        assert same(fit_vae(noise.double(), **TINY), expected)
        assert fit_vae([[0, 1], [1, 0], [2, 2]], **TINY).data_dim == 2
        pixels = (noise * 17).to(torch.uint8)
        assert fit_vae(pixels, **TINY).decoder.mean_net.output == "identity"

    def test_constant_columns_are_capped(self):
        X = torch.rand(100, 3, generator=rng())
        X[:, 0], X[:, 1] = 0.0, 1.0
        vae = fit_vae(X, **{**TINY, "epochs": 40, "variance_epochs": 30}, min_std=0.02)
        std = vae.decoder.std(vae.encode(X))
        assert bool(std.isfinite().all())
        assert std.min() > 0.8 * 0.02
        flat = fit_vae(torch.ones(10, 3), **TINY)
        assert bool(flat.decoder.std(flat.encode(torch.ones(10, 3))).isfinite().all())

    def test_a_larger_constant_std_gives_the_prior_more_weight(self):
        wide, narrow = (fit_vae(ring(), **TINY | {"epochs": 40}, constant_std=std) for std in (1.0, 0.1))
        spread = [float(vae.posterior(ring())[1].mean()) for vae in (wide, narrow)]
        assert spread[0] > 2 * spread[1]

    def test_a_given_constant_std_is_not_learned(self, noise, tmp_path):
        class StopError(Exception):
            pass

        def stop(stage, epoch, *_):
            if epoch == 4:
                raise StopError

        with pytest.raises(StopError):
            fit_vae(noise, **TINY, constant_std=0.7, checkpoint=tmp_path / "c", checkpoint_every=1, progress=stop)
        _, tensors = storage.read_folder(tmp_path / "c", "checkpoint.json", remedy="")
        assert float(tensors["model"]["decoder.scale.log_std"].exp()) == pytest.approx(0.7)
        resumed = fit_vae(noise, **TINY, constant_std=0.7, checkpoint=tmp_path / "c", resume=True)
        assert same(resumed, fit_vae(noise, **TINY, constant_std=0.7))

    @pytest.mark.parametrize(("low", "high", "output"), [(0, 1, "sigmoid"), (-1, 1, "tanh"), (-2, 1, "identity")])
    def test_output_follows_the_range(self, noise, low, high, output):
        assert fit_vae(low + (high - low) * noise, **TINY).decoder.mean_net.output == output
        assert fit_vae(noise, **TINY, output="identity").decoder.mean_net.output == "identity"

    @pytest.mark.filterwarnings("ignore:the decoder's mean is the same:RuntimeWarning")  # of noise, after so few epochs
    @pytest.mark.parametrize("d", [1, 3, 5])
    def test_latent_dimensions(self, noise, d):
        vae = fit_vae(noise, **TINY, latent_dim=d)
        assert vae.encode(noise).shape == (70, d)
        assert bool(vae.decoder.std(vae.encode(noise)).isfinite().all())

    @pytest.mark.parametrize("precision", ["64-true", "bf16-mixed", "bf16-true"])
    def test_precisions(self, noise, precision):
        vae = fit_vae(noise, **TINY, precision=precision)
        dtype = torch.float64 if precision == "64-true" else torch.float32
        assert {p.dtype for p in [*vae.parameters(), *vae.buffers()]} == {dtype}
        baseline = fit_sigma_network(vae, noise, epochs=1, precision=precision)
        assert same(baseline.encoder, vae.encoder)
        assert {p.dtype for p in baseline.parameters()} == {dtype}

    def test_nothing_is_printed(self, noise, capfd):
        fit_vae(noise, **TINY)
        assert capfd.readouterr() == ("", "")


class TestSigmaNetwork:
    def test_only_the_scale_differs(self, noise):
        vae = fit_vae(noise, **TINY)
        kept = {key: value.clone() for key, value in vae.state_dict().items()}
        heard = []
        baseline = fit_sigma_network(vae, noise, epochs=2, progress=lambda *event: heard.append(event[:3]))
        assert isinstance(baseline.decoder.scale, SigmaNetwork)
        assert isinstance(vae.decoder.scale, RBFPrecision)
        assert same(baseline.encoder, vae.encoder)
        assert same(baseline.decoder.mean_net, vae.decoder.mean_net)
        assert all(torch.equal(kept[key], value) for key, value in vae.state_dict().items())
        assert heard == [("sigma", 1, 2), ("sigma", 2, 2)]
        assert not baseline.training
        assert not any(p.requires_grad for p in baseline.parameters())

    def test_misuse(self, noise):
        vae = fit_vae(noise, **TINY)
        with pytest.raises(ValueError, match="4 columns, the model 5"):
            fit_sigma_network(vae, noise[:, :4])
        with pytest.raises(ValueError, match="pass the precision"):
            fit_sigma_network(vae, noise, precision="64-true")
        with pytest.raises(ValueError, match="epochs=0"):
            fit_sigma_network(vae, noise, epochs=0)
        with pytest.raises(ValueError, match="min_std=-1"):
            fit_sigma_network(vae, noise, min_std=-1)
        with pytest.raises(ValueError, match="hidden="):
            fit_sigma_network(vae, noise, hidden=(8, 0))


class TestMisuse:
    @pytest.mark.parametrize(
        ("X", "message"),
        [
            (torch.zeros(5), r"X has shape \(5,\)"),
            (torch.zeros(5, 2, 2), "images flattened"),
            (torch.zeros(1, 3), "at least two rows"),
            (torch.zeros(5, 0), "one column"),
            (torch.tensor([[0.0, 1.0], [2.0, float("nan")]]), r"X\[1, 1\] is nan"),
            (np.array([[0.0, 1.0], [-np.inf, 2.0]]), r"X\[1, 0\] is -inf"),
            (np.array([[1e300, 1.0], [0.0, 2.0]]), r"X\[0, 0\] is inf"),
            (np.zeros((3, 2), dtype=complex), "complex"),
            ([["a", "b"], ["c", "d"]], "rows of numbers"),
            ([[object(), 1.0], [2.0, 3.0]], "rows of numbers"),
            (255 * torch.rand(20, 3, generator=rng()), "pixels / 255"),
            (np.ma.masked_greater(np.arange(6.0).reshape(3, 2), 3), r"2 masked values.*X\.filled"),
            (scipy.sparse.csr_array(np.eye(3)), r"X is sparse: pass X\.toarray\(\)"),
            (torch.eye(3).to_sparse(), r"X is sparse: pass X\.to_dense\(\)"),
        ],
    )
    def test_data(self, X, message):
        with pytest.raises(ValueError, match=message):
            fit_vae(X, latent_dim=1)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"latent_dim": 6}, "latent_dim=6 exceeds the 5 columns"),
            ({"latent_dim": 0}, "latent_dim=0"),
            ({"latent_dim": 2.0}, "latent_dim=2.0: it must be a whole number"),
            ({"epochs": "3"}, "epochs='3'"),
            ({"hidden": (8, 0)}, "hidden="),
            ({"epochs": 0}, "epochs=0"),
            ({"variance_epochs": -1}, "variance_epochs=-1"),
            ({"batch_size": 0}, "batch_size=0"),
            ({"lr": 0.0}, "lr=0"),
            ({"lr": float("nan")}, "lr=nan"),
            ({"zeta": -1.0}, "zeta=-1"),
            ({"a": 0}, "a=0"),
            ({"min_std": 0.0}, "min_std=0"),
            ({"constant_std": -1.0}, "constant_std=-1"),
            ({"weight_decay": -1.0}, "weight_decay=-1"),
            ({"hidden": ()}, "hidden="),
            ({"output": "relu"}, "output='relu'"),
            ({"resume": True}, "needs checkpoint="),
            ({"checkpoint": "never", "checkpoint_every": 0}, "checkpoint_every=0"),
            ({"checkpoint_every": "often", "checkpoint": "never"}, "checkpoint_every='often'"),
            ({"seed": 2**32}, "seed=4294967296: it must be a whole number from 0 to 4294967295"),
            ({"seed": -1}, "seed=-1: it must be"),
            ({"seed": None}, "seed=None: it must be"),
            ({"seed": 1.5}, r"seed=1\.5: it must be"),
            ({"seed": True}, "seed=True: it must be"),
            ({"latent_dim": True}, "latent_dim=True: it must be a whole number"),
            ({"hidden": 8}, r"hidden=8: name the size of each layer, such as hidden=\(8,\)"),
            ({"hidden": "64,32"}, "hidden='64,32': name the size of each layer"),
            ({"lr": "a"}, "lr='a': it must be one number"),
            ({"weight_decay": None}, "weight_decay=None: it must be one finite number"),
            ({"zeta": torch.ones(5)}, r"zeta=tensor.*it must be one number"),
        ],
    )
    def test_settings(self, noise, settings, message):
        with pytest.raises(ValueError, match=message):
            fit_vae(noise, **settings)

    @pytest.mark.parametrize("seed", [-1, 2**32, None, 1.5, True])
    def test_no_function_takes_what_is_no_seed(self, noise, seed):
        vae, decoder = fit_vae(noise, **TINY), torch.nn.Linear(2, 5).eval().requires_grad_(False)
        z = vae.encode(noise)
        for call in (
            lambda: fit_sigma_network(vae, noise, seed=seed),
            lambda: oddity.fit_ensemble(vae, noise, seed=seed),
            lambda: oddity.add_uncertainty(decoder, z, noise, seed=seed),
            lambda: oddity.EntropyBlend(lambda z: torch.distributions.Normal(z, 1), z, seed=seed),
            lambda: RBFPrecision.from_codes(z, 5, seed=seed),
            lambda: oddity.ConvRBFPrecision(z[:3], torch.ones(3), (1, 2, 3), (2,), seed=seed),
        ):
            with pytest.raises(ValueError, match=f"seed={seed}: it must be a whole number from 0 to 4294967295"):
                call()

    def test_the_largest_seed_is_one_and_numbers_of_numpy_are_numbers(self, noise, tmp_path):
        settings = {**TINY, "checkpoint": tmp_path / "run", "seed": np.uint32(2**32 - 1), "latent_dim": np.int64(2)}
        assert same(fit_vae(noise, **settings), fit_vae(noise, **settings, resume=True))

    @pytest.mark.parametrize("settings", [{"lr": 1.0}, {"constant_std": 10.0}])
    def test_a_mean_that_learned_nothing_is_told(self, settings):
        with pytest.warns(RuntimeWarning, match="the decoder's mean is the same at every code"):
            vae = fit_vae(ring(), **{**TINY, "epochs": 30}, **settings)
        assert vae.decoder.mean(vae.encode(ring())).std(0).max() < 1e-2

    def test_sixteen_bits_need_a_gpu(self, noise):
        with pytest.raises(ValueError, match="precision='16-mixed' needs a GPU: on the CPU choose 'bf16-mixed'"):
            fit_vae(noise, **TINY, precision="16-mixed", accelerator="cpu")

    def test_divergence_is_told(self, noise):
        with pytest.raises(RuntimeError, match="diverged in epoch"):
            fit_vae(1e-3 * noise, **{**TINY, "epochs": 60}, lr=1e20)


class StoppedError(Exception):
    pass


def stop_at(stage, epoch, kind=StoppedError):
    def progress(told_stage, told_epoch, epochs, value):
        if (told_stage, told_epoch) == (stage, epoch):
            raise kind

    return progress


class TestCheckpoints:
    @pytest.mark.parametrize("kind", [StoppedError, KeyboardInterrupt])
    @pytest.mark.parametrize(
        "where",
        [("mean", 1), ("mean", 3), ("mean", 4), ("mean", 6), ("centres", 1), ("precision", 1), ("precision", 4)],
    )
    def test_resumed_run_repeats_the_unbroken_one(self, noise, tmp_path, where, kind):
        settings = {**TINY, "checkpoint": tmp_path / "run", "checkpoint_every": 2}
        with pytest.raises(kind):
            fit_vae(noise, **settings, progress=stop_at(*where, kind))
        heard = []
        resumed = fit_vae(noise, **settings, resume=True, progress=lambda *event: heard.append(event[:2]))
        assert same(resumed, fit_vae(noise, **TINY))
        if where == ("precision", 4):
            assert heard == [("precision", 5)]

    def test_broken_twice(self, noise, tmp_path):
        settings = {**TINY, "checkpoint": tmp_path / "run", "checkpoint_every": 1}
        for where in (("mean", 2), ("mean", 5), ("precision", 2), ("precision", 3)):
            with pytest.raises(StoppedError):
                fit_vae(noise, **settings, resume=True, progress=stop_at(*where))
        assert same(fit_vae(noise, **settings, resume=True), fit_vae(noise, **TINY))

    def test_finished_run_is_returned_at_once(self, noise, tmp_path):
        settings = {**TINY, "checkpoint": tmp_path / "run"}
        done, heard = fit_vae(noise, **settings), []
        assert same(fit_vae(noise, **settings, resume=True, progress=heard.append), done)
        assert heard == []

    def test_float64_run_resumes_without_rounding(self, noise, tmp_path):
        settings = {**TINY, "checkpoint": tmp_path / "run", "checkpoint_every": 2, "precision": "64-true"}
        with pytest.raises(StoppedError):
            fit_vae(noise, **settings, progress=stop_at("mean", 5))
        assert same(fit_vae(noise, **settings, resume=True), fit_vae(noise, **TINY, precision="64-true"))

    def test_checkpoint_holds_no_pickle(self, noise, tmp_path):
        fit_vae(noise, **TINY, checkpoint=tmp_path / "run")
        assert {item.suffix for item in (tmp_path / "run").iterdir()} == {".json", ".safetensors"}
        assert [item.name for item in tmp_path.iterdir()] == ["run"]

    def test_full_disk_leaves_the_last_checkpoint(self, noise, tmp_path, monkeypatch):
        settings = {**TINY, "checkpoint": tmp_path / "run", "checkpoint_every": 2}
        write, count = storage._write_bytes, []

        def failing(path, data):
            count.append(path)
            if len(count) == 4:  # the second file of the second checkpoint
                raise OSError(28, "No space left on device")
            write(path, data)

        monkeypatch.setattr(storage, "_write_bytes", failing)
        with pytest.raises(OSError, match="No space left"):
            fit_vae(noise, **settings)
        monkeypatch.undo()
        heard = []
        resumed = fit_vae(noise, **settings, resume=True, progress=lambda *event: heard.append(event[:2]))
        assert heard[0] == ("mean", 3)
        assert same(resumed, fit_vae(noise, **TINY))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"epochs": 7}, "made with epochs=6, this run has epochs=7"),
            ({"hidden": (8, 5)}, "hidden="),
            ({"lr": 1e-2}, "lr="),
            ({"seed": 1}, "seed=0, this run has seed=1"),
            ({"X": torch.rand(70, 5, generator=rng(9))}, "other data"),
            ({"X": torch.rand(71, 5, generator=rng(9))}, "other data"),
        ],
    )
    def test_another_run_is_refused(self, noise, tmp_path, change, message):
        settings = {"X": noise, **TINY, "checkpoint": tmp_path / "run"}
        with pytest.raises(StoppedError):
            fit_vae(**settings, progress=stop_at("mean", 6))
        with pytest.raises(ValueError, match=re.escape(message)):
            fit_vae(**{**settings, **change}, resume=True)

    def test_foreign_folder_is_refused_at_the_start(self, noise, tmp_path):
        (tmp_path / "notes.txt").write_text("mine")
        with pytest.raises(ValueError, match=r"notes\.txt"):
            fit_vae(noise, **TINY, checkpoint=tmp_path)
        assert (tmp_path / "notes.txt").read_text() == "mine"

    def test_damaged_checkpoint(self, noise, tmp_path):
        fit_vae(noise, **TINY, checkpoint=tmp_path / "run")
        (tmp_path / "run" / "model.safetensors").write_bytes(b"short")
        with pytest.raises(ValueError, match=r"damaged.*start afresh without resuming \(at the command line, --force"):
            fit_vae(noise, **TINY, checkpoint=tmp_path / "run", resume=True)

    @pytest.mark.parametrize(
        "change",
        [
            {"settings": None},
            {"settings": 3},
            {"data": {}},
            {"stage": "sigma"},
            {"stage": ["mean"]},
            {"stage": "precision"},
            {"epoch": 0},
            {"epoch": 7},
            {"epoch": True},
            {"epoch": "4"},
            {"stage": None, "epoch": None},
        ],
    )
    def test_a_checkpoint_of_no_run_is_refused(self, noise, tmp_path, change):
        with pytest.raises(StoppedError):
            fit_vae(noise, **TINY, checkpoint=tmp_path / "run", progress=stop_at("mean", 6))
        about = json.loads((tmp_path / "run" / "checkpoint.json").read_text())
        about.pop("checksum")
        about = {key: value for key, value in {**about, **change}.items() if value is not None}
        (tmp_path / "run" / "checkpoint.json").write_text(json.dumps(about))
        with pytest.raises(ValueError, match=r"(is damaged \(|made with other data).*start afresh") as refusal:
            fit_vae(noise, **TINY, checkpoint=tmp_path / "run", resume=True)
        assert "\n" not in str(refusal.value)

    @pytest.mark.parametrize(
        ("group", "change"),
        [
            ("model", lambda t: t.pop("encoder.shared.0.bias")),
            ("model", lambda t: t["encoder.shared.0.bias"].fill_(torch.nan)),
            ("model", lambda t: t.update({"encoder.shared.0.bias": torch.zeros(3)})),
            ("adam", lambda t: t.clear()),
            ("adam", lambda t: t.pop("0.exp_avg")),
            ("adam", lambda t: t.update({"0.exp_avg": torch.zeros(3)})),
            ("adam", lambda t: t.update(odd=torch.zeros(3))),
        ],
    )
    def test_tensors_of_no_run_are_refused(self, noise, tmp_path, group, change):
        with pytest.raises(StoppedError):
            fit_vae(noise, **TINY, checkpoint=tmp_path / "run", progress=stop_at("mean", 6))
        about, tensors = storage.read_folder(tmp_path / "run", "checkpoint.json", remedy="")
        change(tensors[group])
        storage.write_folder(tmp_path / "run", "checkpoint.json", about, tensors)
        with pytest.raises(ValueError, match=r"run' is damaged \(.*\): start afresh"):
            fit_vae(noise, **TINY, checkpoint=tmp_path / "run", resume=True)


def test_first_stage_has_a_constant_scale(noise, tmp_path):
    with pytest.raises(StoppedError):
        fit_vae(noise, **TINY, checkpoint=tmp_path / "run", progress=stop_at("mean", 6))
    _, tensors = storage.read_folder(tmp_path / "run", "checkpoint.json", remedy="")
    assert set(tensors["model"]) >= {"decoder.scale.log_std"}
    assert set(ConstantScale(5).state_dict()) == {"log_std"}


SCRIPT = """
import hashlib, os, sys, warnings
warnings.simplefilter("error")
import torch
torch.set_num_threads(1)
from oddity.models.training import fit_sigma_network, fit_vae

X = torch.rand(203, 6, generator=torch.Generator().manual_seed(0))
engine = {"devices": 2, "strategy": "ddp", "accelerator": "cpu"}
settings = {"hidden": (8, 4), "epochs": 8, "variance_epochs": 5, "n_centres": 4}
heard = []
vae = fit_vae(X, **settings, **engine, checkpoint=sys.argv[1], progress=lambda *e: heard.append(e))
again = fit_vae(X, **settings, **engine, checkpoint=sys.argv[1], resume=True)
baseline = fit_sigma_network(vae, X, epochs=2, **engine)

def digest(model):
    return hashlib.sha256(b"".join(t.numpy().tobytes() for t in model.state_dict().values())).hexdigest()

rank = int(os.environ.get("LOCAL_RANK", "0"))
assert bool(heard) == (rank == 0)
if rank == 0:
    bounds = [value for stage, _, _, value in heard if stage == "mean"]
    assert bounds[-1] > bounds[0], bounds
assert digest(vae) == digest(again)
with open(f"{sys.argv[2]}.{rank}", "w") as file:
    file.write(digest(vae) + digest(baseline))
"""


@pytest.mark.slow
def test_two_processes_train_and_agree(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    env = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "LOCAL_", "MASTER"))}
    for folder in (tmp_path / "first", tmp_path / "second"):
        folder.mkdir()
        done = subprocess.run(
            [sys.executable, str(script), str(folder / "run"), str(folder / "digest")],
            env=env,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        if done.returncode != -signal.SIGABRT:  # once in many runs a thread of PyTorch's aborts the process as it exits
            break
    assert done.returncode == 0, done.stderr
    first, second = (Path(f"{folder}/digest.{rank}").read_text() for rank in (0, 1))
    assert first == second
    assert len(first) == 2 * hashlib.sha256().digest_size * 2
