"""The command, as a user meets it."""

import inspect
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import oddity
from oddity.app.cli import main
from oddity.app.commands import demo, training
from oddity.models.storage import load_model, save_model
from oddity.models.vae import Architecture
from tests.app.files import arrays_in

QUICK = ["--epochs", "2", "--variance-epochs", "2", "--centres", "4", "--hidden", "8,4"]
COMMANDS = ["demo", "train", "encode", "map", "geodesic", "interpolate", "distances", "info"]
COMMANDS += ["cluster", "density", "walk", "sample"]


def run_command(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "oddity", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        **options,
    )


def is_png(path: Path | str) -> bool:
    with Image.open(path) as image:
        return image.format == "PNG"


# ------------------------------------------------------------------------------------------------ quickly


def test_help_and_the_package_import_nothing_heavy() -> None:
    code = """
import sys, oddity
from oddity.app.cli import main
main(["--help"]), main(["train", "--help"])
heavy = {"torch", "numpy", "matplotlib", "sklearn", "scipy", "PIL", "lightning_fabric"} & set(sys.modules)
sys.exit(f"imported {heavy}" if heavy else 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_shows_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    assert f"Example: oddity {command}" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"{oddity.__version__}\n"


def test_the_defaults_of_the_command_are_those_of_the_library() -> None:
    library = {name: p.default for name, p in inspect.signature(oddity.fit_vae).parameters.items()}
    command = {name: p.default for name, p in inspect.signature(training.train).parameters.items()}
    command |= {"n_centres": command.pop("centres"), "hidden": tuple(map(int, command["hidden"].split(",")))}
    command["channels"] = tuple(map(int, command["channels"].split(",")))
    shared = command.keys() & library.keys()
    assert {"epochs", "lr", "zeta", "a", "n_centres", "checkpoint_every", "precision"} <= shared
    assert {name: command[name] for name in shared} == {name: library[name] for name in shared}


# --------------------------------------------------------------------------------- from data to geodesics


def test_train_keeps_what_later_commands_need(model: Path) -> None:
    saved = load_model(model)
    assert saved.codes.shape == (537, 2)
    assert torch.bincount(saved.labels).tolist() == [178, 182, 177]
    assert saved.info["data"] == "digits"
    assert saved.info["image_shape"] == [8, 8]
    assert saved.info["training"]["epochs"] == 80
    assert list(model.parent.iterdir()) == [model]  # no checkpoint is left


@pytest.mark.parametrize("shape", [(40, 9, 6), (40, 3, 7, 6), (40, 7, 6, 3)])
def test_a_convolutional_model_of_images(shape, here: Path) -> None:
    images = np.random.default_rng(0).random(shape)
    np.save("a.npy", images)
    conv = ["--architecture", "conv", "--channels", "3,4", "--batch-size", "16"]
    assert main(["train", "a.npy", "-o", "m", *conv, *QUICK]) == 0
    saved = load_model("m")
    assert saved.vae.image_shape == {(9, 6): (1, 9, 6)}.get(shape[1:], (3, 7, 6))
    assert main(["encode", "m", "a.npy", "-o", "z.npy"]) == 0
    np.testing.assert_array_equal(np.load("z.npy"), saved.codes)
    if shape[-1] == 3:
        images = np.moveaxis(images, -1, 1)
    torch.testing.assert_close(saved.vae.encode(torch.tensor(images).float()), saved.codes)
    assert main(["info", "m"]) == 0
    assert main(["geodesic", "m", "--from", "3", "--to", "5", "-o", "g.npz"]) == 0
    assert main(["interpolate", "m", "--from", "3", "--to", "5", "--frames", "4", "-o", "f.png"]) == 0
    assert is_png("f.png")


def test_convolutions_need_images(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save("a.npy", np.zeros((10, 12)))
    assert main(["train", "a.npy", "-o", "m", "--architecture", "conv"]) != 0
    assert "name their height and width with --image-shape" in " ".join(capsys.readouterr().err.split())
    assert main(["train", "a.npy", "-o", "m", "--architecture", "conv", "--image-shape", "3,4", *QUICK]) == 0
    assert load_model("m").vae.image_shape == (1, 3, 4)


def test_info(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(model)]) == 0
    words = " ".join(capsys.readouterr().out.split())
    for word in ("latent dim │ 2", "codes │ 537", "wall: height", "wall: radius", "wall: crossing cost", "32, 16"):
        assert word in words


def test_encode_is_the_encoder_s_mean(model: Path, here: Path) -> None:
    assert main(["encode", str(model), "digits", "-o", "z.npy", "--classes", "0,1,2"]) == 0
    np.testing.assert_array_equal(np.load("z.npy"), load_model(model).codes)


def test_encode_of_one_row(model: Path, here: Path) -> None:
    np.save("one.npy", np.zeros((1, 64)))
    assert main(["encode", str(model), "one.npy", "-o", "z.npy"]) == 0
    assert np.load("z.npy").shape == (1, 2)


def test_map(model: Path, here: Path) -> None:
    assert main(["map", str(model), "-o", "m.png", "--size", "20"]) == 0
    assert is_png("m.png")


def test_geodesic_between_codes(model: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["geodesic", str(model), "--from", "3", "--to", "5", "-o", "g.npz"]) == 0
    found, codes = arrays_in("g.npz"), load_model(model).codes
    np.testing.assert_allclose(found["points"][0, [0, -1]], codes[[3, 5]], rtol=1e-6)
    np.testing.assert_allclose(found["straight"][0, [0, -1]], codes[[3, 5]], rtol=1e-6)
    assert found["converged"].tolist() == [True]
    assert found["names"].tolist() == [["code 3", "code 5"]]
    assert 0 < found["length"][0] <= found["straight_length"][0] * (1 + 1e-3)
    table = capsys.readouterr().out
    for word in ("code 3", "code 5", "straight length", "geodesic length", "ratio", "converged"):
        assert word in table


@pytest.mark.parametrize("places", [["--from=-0.1,0.2", "--to=0.1,0"], ["--from", "-0.1,0.2", "--to", "0.1,0"]])
def test_geodesic_between_coordinates(places: list[str], model: Path, here: Path) -> None:
    assert main(["geodesic", str(model), *places, "-o", "g.npz"]) == 0
    found = arrays_in("g.npz")
    np.testing.assert_allclose(found["points"][0, [0, -1]], [[-0.1, 0.2], [0.1, 0]], atol=1e-7)
    assert found["names"].tolist() == [["(-0.1, 0.2)", "(0.1, 0)"]]


def test_interpolate(model: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["interpolate", str(model), "--from", "3", "--to", "5", "--frames", "4", "-o", "f.png"]
    assert main(arguments) == 0
    assert is_png("f.png")
    assert "4 frames along each; unevenness" in capsys.readouterr().err


def test_three_dimensions_and_a_csv_without_labels(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = np.random.default_rng(0).normal(size=(60, 5))
    np.savetxt("a.csv", rows, delimiter=",", header="a,b,c,d,e", comments="")
    assert main(["train", "a.csv", "-o", "m", "--latent-dim", "3", *QUICK]) == 0
    assert main(["interpolate", "m", "--from", "0", "--to", "1"]) == 0
    assert is_png("frames.png")
    assert main(["map", "m"]) == 2
    assert "needs codes of shape (n, 2), not (60, 3)" in capsys.readouterr().err


def test_names_of_classes_reach_the_model(here: Path) -> None:
    for name in ("cat", "dog"):
        (here / "pets" / name).mkdir(parents=True)
        for i in range(6):
            Image.new("L", (3, 3), 20 * i).save(here / "pets" / name / f"{i}.png")
    assert main(["train", "pets", "-o", "m", *QUICK]) == 0
    assert load_model("m").info["class_names"] == {"0": "cat", "1": "dog"}
    assert main(["map", "m", "--size", "5"]) == 0


def test_rows_can_be_declared_images(here: Path) -> None:
    np.save("a.npy", np.random.default_rng(0).random((20, 12)))
    assert main(["train", "a.npy", "-o", "m", "--image-shape", "3,4", *QUICK]) == 0
    assert load_model("m").info["image_shape"] == [3, 4]


def test_a_model_without_codes_has_geodesics_between_coordinates(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model("[m]", Architecture(data_dim=6, latent_dim=1).build())
    assert main(["geodesic", "[m]", "--from", "0.1", "--to=-0.2"]) == 0
    assert main(["info", "[m]"]) == 0
    assert "[m]" in capsys.readouterr().out  # brackets are no markup
    assert main(["geodesic", "[m]", "--from", "0", "--to=-0.2"]) == 2
    assert "the model holds no codes: train it with oddity train, or give coordinates" in capsys.readouterr().err


def test_the_same_seed_gives_the_same_model(here: Path) -> None:
    for name in ("m", "n"):
        assert main(["train", "digits", "-o", name, *QUICK]) == 0
    one, two = Path("m/weights.safetensors"), Path("n/weights.safetensors")
    assert one.read_bytes() == two.read_bytes()


def test_an_existing_model_is_replaced_by_force_only(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_model("m", Architecture(data_dim=64, latent_dim=2).build(), info={"mark": 1})
    assert main(["train", "digits", "-o", "m", *QUICK]) == 2
    assert "m exists already: name another model, or replace it with --force" in capsys.readouterr().err
    assert load_model("m").info == {"mark": 1}
    assert main(["train", "digits", "-o", "m", "--force", *QUICK]) == 0
    assert load_model("m").info["data"] == "digits"


# ------------------------------------------------------------------------------------- stopped and resumed


def test_interrupted_training_keeps_its_checkpoint_and_resumes(here: Path) -> None:
    arguments = ["train", "digits", "-o", "m", "--epochs", "4000", "--checkpoint-every", "1", *QUICK[2:]]
    command = [sys.executable, "-m", "oddity", *arguments]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # shells ignore it for what runs behind
    )
    deadline = time.monotonic() + 60
    while not Path("m.checkpoint").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    try:
        _, said = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "oddity: interrupted: go on from m.checkpoint with --resume" in said
    assert "Traceback" not in said
    # a signal while an older checkpoint is being cleared away may leave that behind, hidden, until the next one
    assert [path.name for path in here.iterdir() if not path.name.startswith(".")] == ["m.checkpoint"]
    stopped = run_command(*arguments)
    assert stopped.returncode == 2
    assert "holds a stopped run: go on with --resume" in stopped.stderr


def test_another_run_is_not_resumed(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(training, "training_bars", pressed_at(2))
        assert main(["train", "digits", "-o", "m", "--epochs", "6", "--checkpoint-every", "1"]) == 130
    capsys.readouterr()
    assert main(["train", "digits", "-o", "m", "--epochs", "7", "--resume"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(
        "oddity: the checkpoint was made with epochs=6, this run has epochs=7: use the same, or start"
    )
    assert "--force in place of --resume" in said
    assert "False" not in said


def test_a_model_that_learned_nothing_is_told(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "digits", "-o", "m", *QUICK[2:], "--epochs", "10", "--lr", "1"]) == 0
    assert "warning: the decoder's mean is the same at every code" in capsys.readouterr().err


def pressed_at(last: int) -> Callable[..., object]:
    """Press Ctrl-C when an epoch is over."""

    @contextmanager
    def bars() -> Iterator[object]:
        def progress(stage: str, epoch: int, epochs: int, value: float) -> None:
            if epoch == last:
                raise KeyboardInterrupt

        yield progress

    return bars


def test_a_stopped_run_goes_on_to_the_same_model(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["train", "digits", "--epochs", "6", "--checkpoint-every", "2", *QUICK[2:]]
    assert main([*arguments, "-o", "whole"]) == 0
    with monkeypatch.context() as patch:
        patch.setattr(training, "training_bars", pressed_at(4))
        assert main([*arguments, "-o", "m"]) == 130
    assert Path("m.checkpoint").exists()
    assert main([*arguments, "-o", "m", "--resume"]) == 0
    assert not Path("m.checkpoint").exists()
    weights = [Path(name, "weights.safetensors").read_bytes() for name in ("m", "whole")]
    assert weights[0] == weights[1]


# --------------------------------------------------------------------------------------------- what is refused


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def of_version(path: Path, version: int) -> None:
    about = json.loads(path.read_text())
    path.write_text(json.dumps({**about, "format": version}))


def with_nan() -> np.ndarray:
    rows = np.random.default_rng(0).random((5, 64))
    rows[2, 7] = np.nan
    return rows


BAD = {
    "no data": (None, "train none.npy -o n", "there is no file or folder none.npy"),
    "wrong content": (lambda: Path("a.npy").write_text("x"), "train a.npy -o n", "a.npy is not what its name says"),
    "NaN": (lambda: np.save("a.npy", with_nan()), "train a.npy -o n", "a.npy holds nan in row 2, column 7"),
    "one row": (
        lambda: np.save("a.npy", np.ones((1, 4))),
        "train a.npy -o n",
        "a.npy gives one row: a model needs at least two",
    ),
    "latent-dim": (None, "train digits -o n --latent-dim 65", "latent_dim=65"),
    "seed": (None, "train digits -o n --seed 4294967296", "Invalid value for '--seed'"),
    "enormous seed": (None, "demo --seed 99999999999999999999999", "4294967295"),
    "half precision": (None, "train digits -o n --precision 16-mixed --accelerator cpu", "needs a GPU: on the CPU"),
    "zeta": (None, "train digits -o n --zeta -1", "zeta=-1.0"),
    "hidden": (None, "train digits -o n --hidden 8,x", "--hidden 8,x is not a list of whole numbers"),
    "class": (None, "train digits -o n --classes 0,17", "digits can't give class 17"),
    "image shape": (None, "train digits -o n --image-shape 3,4", "64 columns are not images of 3 x 4"),
    "strategy": (None, "train digits -o n --strategy none", "invalid strategy name"),
    "accelerator": (None, "train digits -o n --accelerator mps", "can not run on your system"),
    "no option": (None, "train digits", "Missing option '--out'"),
    "no such option": (None, "train digits -o n --epoch 3", "No such option: --epoch"),
    "no number": (None, "train digits -o n --epochs few", "Invalid value for '--epochs'"),
    "no command": (None, "trian digits", "No such command 'trian'"),
    "index too large": (
        None,
        "geodesic m --from 0 --to 537",
        "--to 537 is out of range: the model holds the codes 0 to 536",
    ),
    "index below zero": (None, "geodesic m --from=-1 --to 5", "--from -1 is out of range"),
    "two signs": (None, "geodesic m --from=+-5 --to 3", "--from +-5 is neither an index nor coordinates"),
    "an index without end": (None, f"geodesic m --from {'9' * 5000} --to 3", "is no place in 2 dimensions"),
    "a model that is a pipe": (
        lambda: (Path("m/weights.safetensors").unlink(), os.mkfifo("m/weights.safetensors")),
        "info m",
        "weights.safetensors is a pipe: name a file, which ends; save the model again",
    ),
    "figure into a pipe": (lambda: os.mkfifo("f.png"), "map m -o f.png", "it is a pipe or a device; name a file"),
    "three coordinates": (None, "geodesic m --from 0 --to 1,2,3", "--to 1,2,3 is no place in 2 dimensions"),
    "infinite place": (None, "geodesic m --from 0 --to 1,inf", "--to 1,inf is no place in 2 dimensions"),
    "no place": (None, "geodesic m --from 0 --to there", "--to there is neither an index nor coordinates"),
    "frames": (None, "interpolate m --from 0 --to 1 --frames 1", "Invalid value for '--frames'"),
    "no model": (None, "info none", "there is no folder 'none'"),
    "a file for a model": (
        lambda: Path("x.npy").write_text(""),
        "info x.npy",
        "'x.npy' is a file: name the folder that holds",
    ),
    "model without files": (lambda: Path("e").mkdir(), "map e", "model.json' is missing"),
    "weights missing": (lambda: Path("m/weights.safetensors").unlink(), "info m", "weights.safetensors' is missing"),
    "weights cut": (lambda: cut(Path("m/weights.safetensors")), "info m", "weights.safetensors' is damaged"),
    "codes cut": (lambda: cut(Path("m/codes.safetensors")), "map m", "codes.safetensors' is damaged"),
    "json cut": (lambda: cut(Path("m/model.json")), "map m", "model.json' is damaged"),
    "other version": (lambda: of_version(Path("m/model.json"), 99), "info m", "format 99"),
    "no codes": (lambda: Path("m/codes.safetensors").unlink(), "map m", "codes.safetensors' is missing"),
    "other columns": (lambda: np.save("a.npy", np.ones((3, 9))), "encode m a.npy -o z.npy", "takes (*, 64)"),
    "no folder": (None, "map m -o none/map.png", "there is no folder none"),
    "figure's ending": (None, "map m -o map.docx", "let its name end in .png"),
    "codes' ending": (None, "encode m digits -o z.txt", "let its name end in .npy"),
    "file for a folder": (lambda: Path("f").write_text(""), "map m -o f/map.png", "f is not a folder"),
    "no name": (None, "train digits -o .", "--out . has no name of its own"),
    "no folder for a model": (None, "train digits -o none/m", "there is no folder none; make it first"),
    "no folder for a demo": (None, "demo --out none/demo", "there is no folder none; make it first"),
    "foreign folder": (
        lambda: (Path("f").mkdir(), Path("f/thesis.tex").write_text("")),
        "train digits -o f --force",
        "thesis.tex, which would be lost",
    ),
}


@pytest.mark.parametrize(("prepare", "line", "sentence"), BAD.values(), ids=BAD)
def test_bad_input_is_one_sentence_and_status_2(
    prepare: Callable[[], object] | None,
    line: str,
    sentence: str,
    model: Path,
    here: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(model, "m")
    if prepare is not None:
        prepare()
    before = sorted(here.rglob("*"))
    command, *rest = line.split()
    assert main([command, *(QUICK if command == "train" else []), *rest]) == 2
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 1
    assert said[0].startswith("oddity: ")
    assert sentence in said[0]
    assert sorted(here.rglob("*")) == before


def test_a_full_disk_is_a_sentence_and_the_old_file_survives(
    model: Path, here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("z.npy").write_text("old")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "z.npy")

    monkeypatch.setattr(np, "save", full)
    assert main(["encode", str(model), "digits", "-o", "z.npy"]) == 2
    assert capsys.readouterr().err.startswith("oddity: No space left on device: z.npy; make room")
    assert Path("z.npy").read_text() == "old"
    assert len(list(here.iterdir())) == 1


def test_a_full_standard_output_is_named(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(io.StringIO):
        def write(self, _: str) -> int:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(sys, "stdout", Full())
    assert main(["info", str(model)]) == 2
    assert capsys.readouterr().err == "oddity: No space left on device: standard output\n"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device", "demo")])
def test_a_demo_that_fails_early_leaves_no_folder(
    here: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("oddity.models.training.fit_vae", fail)
    assert main(["demo", "--out", "demo"]) in (2, 130)
    assert list(here.iterdir()) == []


def test_a_mistake_of_ours_is_not_hidden(model: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oddity.app.plots.latent_map", lambda *_, **__: np.ones(3).reshape(2, 2))
    with pytest.raises(ValueError, match="cannot reshape"):
        main(["map", str(model), "--size", "3"])


def test_what_c_code_raises_under_our_lines_is_no_sentence(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = SimpleNamespace(log_volume=lambda z: z.new_zeros(()))
    monkeypatch.setattr("oddity.app.latent.expected_metric", lambda _: wrong)
    with pytest.raises(RuntimeError, match="zero-dimensional tensor") as caught:
        main(["map", str(model), "--size", "3"])
    assert caught.traceback[-1].frame.f_globals["__name__"] == "oddity.app.latent"


def test_ctrl_c_elsewhere(model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def press(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("oddity.models.storage.load_model", press)
    assert main(["info", str(model)]) == 130
    assert capsys.readouterr().err == "oddity: interrupted: nothing was left half-written\n"


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_kill_ends_as_ctrl_c_does(
    name: str, model: Path, here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    number = getattr(signal, name)

    def killed(file: object, *_: object, **__: object) -> None:
        os.kill(os.getpid(), number)
        time.sleep(5)

    before = signal.signal(number, signal.SIG_DFL)
    try:
        monkeypatch.setattr(np, "save", killed)
        assert main(["encode", str(model), "digits", "-o", "z.npy"]) == 128 + number
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, before)
    assert capsys.readouterr().err == "oddity: interrupted: nothing was left half-written\n"
    assert list(here.iterdir()) == []


def test_what_is_ignored_stays_ignored(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def look(*_: object) -> None:
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        raise ValueError("seen")

    monkeypatch.setattr("oddity.models.storage.load_model", look)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with pytest.raises(ValueError, match="seen"):
            main(["info", str(model)])
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    "error", [MemoryError(), MemoryError("Unable to allocate 1 TiB"), lambda: torch.empty(1 << 60, dtype=torch.uint8)]
)
def test_no_memory_is_a_sentence(
    error: object, model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhaust(*_: object) -> None:
        if callable(error):
            error()
        raise error  # type: ignore[misc]

    monkeypatch.setattr("oddity.models.storage.load_model", exhaust)
    assert main(["info", str(model)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("oddity: not enough memory")
    assert said.count("\n") == 1


def test_in_a_process_of_its_own(model: Path) -> None:
    done = run_command("info", str(model))
    assert (done.returncode, done.stderr) == (0, "")
    failed = run_command("info", "none")
    assert (failed.returncode, failed.stdout) == (2, "")
    assert failed.stderr.startswith("oddity: there is no folder 'none'")


def test_the_demo_joins_typical_codes_of_different_classes() -> None:
    rng = np.random.default_rng(1)
    codes, labels = rng.normal(size=(90, 2)), np.repeat([0, 3, 7], 30)
    codes[0] = 50.0  # like no other of its class
    pairs = demo._pairs(codes, labels, seed=0)
    np.testing.assert_array_equal(labels[pairs[:4]], [[0, 3], [0, 7], [3, 7], [0, 3]])
    assert len(np.unique(pairs, axis=0)) == demo.PAIRS
    assert 0 not in pairs


def test_the_demo_pictures_every_kind_of_pair() -> None:
    ratio, kinds = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.9], [(0, 1)] * 5 + [(0, 2), (1, 2)]
    assert demo._most_to_see(ratio, kinds) == [0, 1, 2, 5, 6]


@pytest.mark.slow
def test_demo_leaves_everything_that_it_promises(here: Path) -> None:
    done = run_command("demo", "--out", "out", "--epochs", "20")
    assert done.returncode == 0, done.stderr
    out = here / "out"
    figures = ["interpolations.png", "latent_map.png", "variance.png"]
    assert sorted(path.name for path in out.iterdir()) == sorted([*figures, "geodesics.npz", "model", "summary.json"])
    for name in figures:
        assert is_png(out / name)
    found, summary = arrays_in(out / "geodesics.npz"), json.loads((out / "summary.json").read_text())
    codes = load_model(out / "model").codes.numpy()
    np.testing.assert_allclose(found["points"][:, [0, -1]], codes[found["pairs"]], rtol=1e-6)
    assert (found["length"] <= found["straight_length"] * (1 + 1e-3)).all()
    assert [record["length"] for record in summary["geodesics"]] == pytest.approx(found["length"])
    assert summary["rows"] == 1500
    assert summary["peak_memory_mib"] < 2000
    assert done.stdout.count("code ") == 20
    for word in ("1/3", "2/3", "3/3", "baseline"):
        assert word in done.stderr


@pytest.mark.slow
def test_a_process_that_dies_is_a_sentence_for_the_other(here: Path) -> None:
    options = ["--accelerator", "cpu", "--devices", "2", "--strategy", "ddp", "--checkpoint-every", "1"]
    command = [sys.executable, "-m", "oddity", "train", "digits", "-o", "m", *options, "--epochs", "9999", *QUICK[2:]]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, start_new_session=True
    )
    deadline = time.monotonic() + 90
    while not Path("m.checkpoint").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True).stdout
    os.kill(int(children.split()[0]), signal.SIGKILL)
    try:
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 2
    assert said.splitlines()[-1].startswith("oddity: another process of this training has ended")
    assert "Traceback" not in said
    assert [path.name for path in here.iterdir() if not path.name.startswith(".")] == ["m.checkpoint"]


@pytest.mark.slow
def test_two_processes_train_one_model(here: Path) -> None:
    options = ["--accelerator", "cpu", "--devices", "2", "--strategy", "ddp"]
    done = run_command("train", "digits", "-o", "m", *options, *QUICK)
    assert done.returncode == 0, done.stderr
    assert len(load_model("m").codes) == 1797
    assert done.stderr.count("1797 codes") == 1
    assert [path.name for path in here.iterdir()] == ["m"]
