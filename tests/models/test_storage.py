import errno
import hashlib
import json
import os
import time

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests import disks

from oddity.models import storage
from oddity.models.storage import FORMAT, load_model, save_model
from oddity.models.vae import Architecture

PLANS = {
    "constant": Architecture(6, 2, (8, 4), "sigmoid", min_std=0.02),
    "network": Architecture(6, 2, (8, 4), "tanh", scale="network", scale_hidden=(4, 8)),
    "rbf": Architecture(6, 2, (8, 4), scale="rbf", n_centres=3),
    "conv": Architecture(
        6, 2, (8, 4), "sigmoid", "rbf", n_centres=3, image_shape=(2, 1, 3), channels=(4, 2), scale_channels=(3, 2)
    ),
}


def same(one, two):
    a, b = one.state_dict(), two.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


@pytest.fixture
def model():
    vae = PLANS["rbf"].build(seed=3)
    vae.decoder.scale.centres.normal_(generator=torch.Generator().manual_seed(0))
    return vae.eval().requires_grad_(False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", sorted(PLANS))
def test_round_trip_bit_for_bit(tmp_path, name, dtype):
    vae = PLANS[name].build(seed=3).to(dtype)
    codes, labels = torch.randn(5, 2).to(dtype), torch.arange(5)
    info = {"dataset": "toy", "shape": [2, 3]}
    path = save_model(tmp_path / "m", vae, codes=codes, labels=labels, info=info)
    saved = load_model(path)
    assert path == tmp_path / "m"
    assert same(saved.vae, vae)
    assert torch.equal(saved.codes, codes)
    assert torch.equal(saved.labels, labels)
    assert saved.info == info
    assert Architecture.of(saved.vae) == PLANS[name]
    assert not saved.vae.training
    assert not any(p.requires_grad for p in saved.vae.parameters())
    x = torch.rand(4, 6, dtype=dtype)
    assert torch.equal(saved.vae(x), vae(x))
    assert torch.equal(saved.vae.decoder.std(saved.codes), vae.decoder.std(codes))


def test_codes_and_labels_are_optional(tmp_path, model):
    saved = load_model(save_model(str(tmp_path / "deep" / "m"), model))
    assert saved.codes is None
    assert saved.labels is None
    assert saved.info == {}
    assert {item.name for item in (tmp_path / "deep" / "m").iterdir()} == {"model.json", "weights.safetensors"}


def test_saving_again_replaces_and_leaves_nothing_behind(tmp_path, model):
    save_model(tmp_path / "m", model, codes=torch.zeros(3, 2))
    save_model(tmp_path / "m", model, info={"second": True})
    assert load_model(tmp_path / "m").info == {"second": True}
    assert load_model(tmp_path / "m").codes is None
    assert [item.name for item in tmp_path.iterdir()] == ["m"]


def test_loading_leaves_the_global_state_alone(tmp_path, model):
    save_model(tmp_path / "m", model)
    before = torch.get_rng_state()
    load_model(tmp_path / "m")
    assert torch.equal(torch.get_rng_state(), before)


def test_loaded_model_does_not_depend_on_its_files(tmp_path, model):
    save_model(tmp_path / "m", model)
    loaded = load_model(tmp_path / "m").vae
    (tmp_path / "m" / "weights.safetensors").write_bytes(b"")
    assert same(loaded, model)


@pytest.mark.parametrize("at", [1, 2])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_full_disk_or_a_kill_leaves_the_old_model_whole(tmp_path, model, monkeypatch, at, error):
    save_model(tmp_path / "m", model, info={"first": True})
    count = []

    def failing(path, data):
        count.append(path)
        path.write_bytes(data[: len(data) // 2])
        if len(count) == at:
            raise error
        path.write_bytes(data)

    monkeypatch.setattr(storage, "_write_bytes", failing)
    with pytest.raises(type(error)):
        save_model(tmp_path / "m", model, codes=torch.zeros(3, 2))
    saved = load_model(tmp_path / "m")
    assert saved.info == {"first": True}
    assert same(saved.vae, model)
    assert [item.name for item in tmp_path.iterdir()] == ["m"]


@pytest.mark.parametrize("full", [disks.limited, disks.small])
def test_a_real_write_error_is_an_oserror_and_leaves_the_old_model_whole(tmp_path, model, full):
    with full(tmp_path, 1 << 14) as place:
        save_model(place / "m", model, info={"first": True})
        for name in ("m", "deep/er/m"):
            with pytest.raises(OSError, match=r"(File too large|No space left on device): '.*m'"):
                save_model(place / name, model, codes=torch.zeros(9999, 2))
        assert load_model(place / "m").info == {"first": True}
        assert [item.name for item in place.iterdir()] == ["m"]


def test_two_at_once_do_not_mix(tmp_path, model, monkeypatch):
    write = storage._write_bytes

    def second(file, data):
        monkeypatch.setattr(storage, "_write_bytes", write)
        with pytest.raises(BlockingIOError, match=r"m' is being written by another process: wait for it"):
            save_model(tmp_path / "m", model)
        write(file, data)

    monkeypatch.setattr(storage, "_write_bytes", second)
    save_model(tmp_path / "m", model, info={"first": True})
    assert load_model(tmp_path / "m").info == {"first": True}
    assert [item.name for item in tmp_path.iterdir()] == ["m"]


def test_failing_rename_brings_the_old_model_back(tmp_path, model, monkeypatch):
    save_model(tmp_path / "m", model, info={"first": True})
    rename = type(tmp_path).rename

    def failing(self, target):
        if self.name.endswith(".new"):
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(type(tmp_path), "rename", failing)
    with pytest.raises(OSError, match="Input/output"):
        save_model(tmp_path / "m", model)
    assert load_model(tmp_path / "m").info == {"first": True}
    assert [item.name for item in tmp_path.iterdir()] == ["m"]


def test_kill_between_the_two_renames_loses_nothing(tmp_path, model):
    save_model(tmp_path / "m", model, info={"first": True})
    (tmp_path / "m").rename(tmp_path / ".m.old")  # what such a kill leaves
    (tmp_path / ".m.new").mkdir()
    assert load_model(tmp_path / "m").info == {"first": True}
    save_model(tmp_path / "m", model, info={"second": True})
    assert load_model(tmp_path / "m").info == {"second": True}
    assert [item.name for item in tmp_path.iterdir()] == ["m"]


def without_seal(about):
    """As an older version wrote it: what the checksum of a description would stop is to be stopped without it."""
    return {key: value for key, value in about.items() if key != "checksum"}


class TestRefusals:
    def test_folder_with_other_things(self, tmp_path, model):
        (tmp_path / "thesis.tex").write_text("years of work")
        with pytest.raises(ValueError, match=r"thesis\.tex.*name another folder"):
            save_model(tmp_path, model)
        assert (tmp_path / "thesis.tex").read_text() == "years of work"

    def test_folder_of_foreign_weights(self, tmp_path, model):
        save_file({"a": torch.zeros(1)}, tmp_path / "precious.safetensors")
        with pytest.raises(ValueError, match="precious"):
            save_model(tmp_path, model)

    def test_a_file_in_the_way(self, tmp_path, model):
        (tmp_path / "m").write_text("")
        with pytest.raises(ValueError, match="is a file"):
            save_model(tmp_path / "m", model)

    def test_empty_folder_is_fine(self, tmp_path, model):
        (tmp_path / "m").mkdir()
        assert same(load_model(save_model(tmp_path / "m", model)).vae, model)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"codes": torch.zeros(3, 2).long()}, r"codes of type torch.int64: pass real numbers"),
            ({"codes": torch.full((3, 2), torch.nan)}, r"code 0 is \[nan, nan\], not finite: train the model again"),
            ({"codes": torch.zeros(3, 4)}, r"codes of shape \(3, 4\): pass \(n, 2\)"),
            ({"codes": torch.zeros(3, 2), "labels": torch.zeros(4).long()}, r"labels of shape \(4,\)"),
            ({"codes": torch.zeros(3, 2), "labels": torch.zeros(3)}, "float32"),
            ({"labels": torch.zeros(3).long()}, "one for each code"),
            ({"info": {"a": object()}}, "JSON"),
            ({"info": {"a": float("nan")}}, "JSON"),
        ],
    )
    def test_bad_arguments(self, tmp_path, model, arguments, message):
        with pytest.raises(ValueError, match=message):
            save_model(tmp_path / "m", model, **arguments)
        assert list(tmp_path.iterdir()) == []

    def test_model_of_foreign_parts(self, tmp_path, model):
        model.decoder.scale = torch.nn.Softplus()
        with pytest.raises(ValueError, match="Softplus"):
            save_model(tmp_path / "m", model)


class TestDamage:
    @pytest.fixture
    def folder(self, tmp_path, model):
        return save_model(tmp_path / "m", model, codes=torch.zeros(3, 2))

    def edit(self, folder, **changes):
        about = json.loads((folder / "model.json").read_text())
        (folder / "model.json").write_text(json.dumps(without_seal({**about, **changes})))
        return about

    def test_missing_folder(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"nowhere.*check the path"):
            load_model(tmp_path / "nowhere")

    def test_a_file_for_a_folder(self, tmp_path):
        (tmp_path / "x.npy").write_text("")
        with pytest.raises(NotADirectoryError, match=r"x\.npy' is a file: name the folder that holds model\.json"):
            load_model(tmp_path / "x.npy")

    @pytest.mark.parametrize("name", ["model.json", "weights.safetensors", "codes.safetensors"])
    def test_missing_file(self, folder, name):
        (folder / name).unlink()
        with pytest.raises(FileNotFoundError, match=rf"{name}.*is missing.*save the model again"):
            load_model(folder)

    @pytest.mark.parametrize("name", ["model.json", "weights.safetensors", "codes.safetensors"])
    @pytest.mark.parametrize("keep", [0, 5, 60])
    def test_truncated_file(self, folder, name, keep):
        (folder / name).write_bytes((folder / name).read_bytes()[:keep])
        with pytest.raises(ValueError, match=rf"{name}.*damaged.*save the model again"):
            load_model(folder)

    def test_flipped_bit(self, folder):
        content = bytearray((folder / "weights.safetensors").read_bytes())
        content[-3] ^= 4
        (folder / "weights.safetensors").write_bytes(content)
        with pytest.raises(ValueError, match="checksum"):
            load_model(folder)

    @pytest.mark.parametrize("content", [b"\xff\xfe", b"[]", b"null"])
    def test_description_that_is_none(self, folder, content):
        (folder / "model.json").write_bytes(content)
        with pytest.raises(ValueError, match="damaged"):
            load_model(folder)

    @pytest.mark.parametrize("version", [FORMAT + 1, None, "1"])
    def test_other_format(self, folder, version):
        self.edit(folder, format=version)
        with pytest.raises(ValueError, match=f"format {version!r}, this version reads {FORMAT}"):
            load_model(folder)

    @pytest.mark.parametrize(
        "changes",
        [{"data_dim": 7}, {"scale": "constant"}, {"scale": "odd"}, {"hidden": 3}, {"colour": "red"}, {"n_centres": 4}],
    )
    def test_weights_that_do_not_fit(self, folder, changes):
        about = json.loads((folder / "model.json").read_text())
        self.edit(folder, architecture={**about["architecture"], **changes})
        with pytest.raises(ValueError, match="do not fit the architecture"):
            load_model(folder)

    @pytest.mark.parametrize("group", ["../m/weights", "/etc/weights", "a/b", ""])
    def test_no_path_leads_out_of_the_folder(self, folder, group):
        about = self.edit(folder)
        self.edit(folder, files={**about["files"], group: about["files"]["weights"]})
        with pytest.raises(ValueError, match=r"damaged \(it lists a file '.*'\): save the model again"):
            load_model(folder)

    @pytest.mark.parametrize(
        ("info", "fault"),
        [
            ({"training": 3}, "training in its info is 3, no mapping"),
            ({"training": None}, "training in its info is None"),
            ({"class_names": ["a"]}, "class_names in its info is"),
            ({"class_names": {"a": "b"}}, "class_names in its info name 'a', no label"),
            ({"class_names": {"--5": "b"}}, "class_names in its info name '--5', no label"),
            ({"class_names": {"5": ["b"]}}, r"class_names in its info hold \['b'\], no name"),
            ({"image_shape": "8x8"}, "image_shape in its info is '8x8'"),
            ({"image_shape": [3, 3]}, r"image_shape in its info is \[3, 3\], not that of 6 pixels"),
            ({"image_shape": [8, -8]}, r"image_shape in its info is \[8, -8\]"),
        ],
    )
    def test_what_the_command_reads_has_its_form(self, folder, model, info, fault):
        self.edit(folder, info=info)
        with pytest.raises(ValueError, match=rf"model.json' is damaged \({fault}.*save the model again"):
            load_model(folder)
        with pytest.raises(ValueError, match=fault):
            save_model(folder, model, info=info)

    @pytest.mark.parametrize("changes", [{"files": None}, {"files": {}}, {"architecture": None}, {"info": None}])
    def test_parts_of_the_description_missing(self, folder, changes):
        self.edit(folder, **changes)
        with pytest.raises(ValueError, match=r"save the model again"):
            load_model(folder)

    @pytest.mark.parametrize("name", ["model.json", "weights.safetensors", "codes.safetensors"])
    @pytest.mark.parametrize(
        ("kind", "fault"),
        [
            (os.mkfifo, "is a pipe: name a file"),
            (lambda path: path.symlink_to("/dev/zero"), "is a device: name a file"),
            (lambda path: path.mkdir(), "is a folder: name a file"),
            (lambda path: path.symlink_to("elsewhere"), "is missing"),
            (lambda path: sparse(path, 1 << 42), r"holds 4,096 GiB, and this machine has"),
        ],
    )
    def test_what_is_no_file_is_not_read(self, folder, name, kind, fault):
        (folder / name).unlink()
        kind(folder / name)
        with pytest.raises((ValueError, OSError), match=rf"{name}'? {fault}.*save the model again"):
            load_model(folder)

    @pytest.mark.parametrize(
        "content", [b"[" * 50_000, b'{"format": ' + b"9" * 5000 + b"}", b'{"format": NaN}', b'{"a": ' * 50_000]
    )
    def test_descriptions_that_break_their_parser(self, folder, content):
        (folder / "model.json").write_bytes(content)
        with pytest.raises(ValueError, match=r"model.json' is damaged.*save the model again"):
            load_model(folder)

    @pytest.mark.parametrize("place", range(5, 660, 73))
    def test_a_flipped_bit_of_the_description(self, folder, place):
        content = bytearray((folder / "model.json").read_bytes())
        content[place] ^= 1
        (folder / "model.json").write_bytes(content)
        with pytest.raises(ValueError, match=r"(damaged|not as it was written|has format|lists no files)"):
            load_model(folder)

    def test_a_description_without_a_checksum_is_one_of_an_older_version(self, folder, model):
        self.edit(folder)
        assert same(load_model(folder).vae, model)

    @pytest.mark.parametrize(
        "changes",
        [
            {"hidden": [8] * 100_000},
            {"hidden": [10**12]},
            {"hidden": []},
            {"hidden": [8, -4]},
            {"hidden": [8.5, 4]},
            {"hidden": {"a": 1}},
            {"data_dim": 10**15},
            {"data_dim": "6"},
            {"latent_dim": True},
            {"latent_dim": 0},
            {"n_centres": 10**12},
            {"n_centres": None},
            {"output": "relu"},
            {"output": ["sigmoid"]},
            {"min_std": "NaN"},
            {"min_std": -1},
            {"image_shape": [1, 2, 3]},
            {"image_shape": [10**9, 10**9, 10**9], "channels": [2]},
            {"channels": [2] * 100_000, "image_shape": [1, 2, 3]},
            {"scale_hidden": [1] * 100_000},
            {"scale_channels": 4},
        ],
    )
    def test_a_description_of_what_is_not_there_is_refused_before_it_is_built(self, folder, changes):
        about = json.loads((folder / "model.json").read_text())
        self.edit(folder, architecture={**about["architecture"], **changes})
        start = time.perf_counter()
        with pytest.raises(ValueError, match=r"do not fit the architecture beside them \(.*\): save") as refusal:
            load_model(folder)
        assert time.perf_counter() - start < 5
        assert "\n" not in str(refusal.value)
        assert len(str(refusal.value)) < 600

    def rewrite(self, folder, group, change):
        """Change tensors, and sign them again."""
        file = folder / f"{group}.safetensors"
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file)
        about = json.loads((folder / "model.json").read_text())
        files = {**about["files"], group: hashlib.sha256(file.read_bytes()).hexdigest()}
        self.edit(folder, files=files)

    @pytest.mark.parametrize(
        ("change", "fault"),
        [
            (lambda t: t["encoder.shared.0.bias"].fill_(torch.nan), "encoder.shared.0.bias holds nan"),
            (lambda t: t["decoder.mean_net.0.weight"].fill_(torch.inf), "decoder.mean_net.0.weight holds inf"),
            (lambda t: t["decoder.scale.zeta"].fill_(-1), "zeta=-1.0: pass a positive number"),
            (lambda t: t["decoder.scale.bandwidths"].zero_(), "bump 0 has bandwidth 0"),
            (lambda t: t["decoder.scale.centres"].fill_(torch.nan), "decoder.scale.centres holds nan"),
            (lambda t: t["decoder.scale.weight"].fill_(-2), "weight of the bumps holds -2"),
            (
                lambda t: t.update({"decoder.scale.zeta": t["decoder.scale.zeta"].double()}),
                "of the types float32, float64",
            ),
            (lambda t: t.update({"decoder.scale.zeta": torch.ones(6).long()}), "of the types float32, int64"),
            (lambda t: t.update({"decoder.scale.zeta": torch.ones(5)}), "do not fit"),
            (lambda t: t.update({"decoder.scale.centres": torch.zeros(0, 2)}), "do not fit"),
            (lambda t: t.pop("decoder.scale.zeta"), "decoder.scale.zeta should have shape .* it is missing"),
            (lambda t: t.pop("decoder.scale.weight"), "do not fit"),
            (lambda t: t.pop("encoder.shared.0.bias"), "encoder.shared.0.bias should have shape .* it is missing"),
            (lambda t: t.update(more=torch.zeros(1)), "do not fit"),
        ],
    )
    def test_numbers_that_no_training_gives(self, folder, model, change, fault):
        self.rewrite(folder, "weights", change)
        with pytest.raises(ValueError, match=rf"{fault}.*: save the model again"):
            load_model(folder)

    def test_they_are_not_saved_either(self, tmp_path, model):
        for wrong in (torch.nan, 0.0, -1.0):
            model.decoder.scale.zeta.fill_(wrong)
            with pytest.raises(ValueError, match=r"zeta.*train the model again"):
                save_model(tmp_path / "m", model)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("change", "fault"),
        [
            (lambda t: t["codes"].fill_(torch.nan), r"code 0 is \[nan, nan\], not finite"),
            (lambda t: t.update(codes=torch.zeros(3, 5)), r"codes of shape \(3, 5\)"),
            (lambda t: t.update(codes=torch.zeros(3, 2).long()), "codes of type torch.int64"),
            (lambda t: t.update(labels=torch.zeros(4).long()), r"labels of shape \(4,\)"),
            (lambda t: t.update(labels=torch.zeros(3)), ".*pass integers"),
        ],
    )
    def test_codes_that_are_none(self, folder, change, fault):
        self.rewrite(folder, "codes", change)
        with pytest.raises(ValueError, match=f"m' is damaged: {fault}"):
            load_model(folder)


def sparse(path, size):
    with path.open("wb") as file:
        file.truncate(size)
