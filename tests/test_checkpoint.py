"""Checkpoints: our own and the official ones, damaged, foreign and hostile ones."""

import collections
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ROOT, run_script
from torch.optim.lr_scheduler import MultiStepLR

from models import build
from models.classifier import Classifier
from models.refine import RefineNet
from models.vgg import trunk_aliases
from utils import checkpoint
from utils.checkpoint import check_fit, read
from utils.files import UserError
from utils.provenance import Record
from utils.runtime import Runtime
from utils.training import Training

WIDTH = 0.0625


def official(model: torch.nn.Module, prefix: str = "", **extra: object) -> dict:
    """What the official project saves: aliases, and figures beside the weights."""
    state = {prefix + name: value.clone() for name, value in model.state_dict().items()}
    for alias, name in trunk_aliases().items():
        for kind in ("weight", "bias"):
            state[f"{prefix}{alias}.{kind}"] = state[f"{prefix}{name}.{kind}"]
    return {"model": collections.OrderedDict(state), "optimizer": {"state": {}, "param_groups": []},
            "epoch": 11, "iter": 9, "miou": np.float64(0.625)} | extra


def rewrite_pickle(path: Path, old: bytes, new: bytes) -> None:
    """Replace bytes in the pickle inside a file of torch.save."""
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    assert any(old in value for name, value in content.items() if name.endswith(".pkl"))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, value in content.items():
            archive.writestr(name, value.replace(old, new) if name.endswith(".pkl") else value)


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


# Official files

@pytest.mark.parametrize("module", [b"numpy.core.multiarray", b"numpy._core.multiarray"])
def test_official_file_of_any_numpy(tmp_path, module):
    model, path = Classifier(3, width=WIDTH), tmp_path / "official.pth"
    torch.save(official(model), path)
    here = np.float64(0).__reduce__()[0].__module__.encode()  # by the NumPy that is installed
    rewrite_pickle(path, here + b"\nscalar", module + b"\nscalar")
    found = read(path)
    assert same(found.state, dict(model.state_dict())) and not found.own
    assert found.network == {"network": "classifier", "num_classes": 3, "width": WIDTH,
                             "batch_norm": False, "drs": "learnable", "delta": 0.55}
    assert found.rest["miou"] == 0.625 and found.rest["epoch"] == 11
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(found.instantiate(build).eval()(images), model.eval()(images))


@pytest.mark.parametrize("form", ["legacy", "plain", "module", "no aliases"])
def test_official_file_in_other_forms(tmp_path, form):
    model, path = RefineNet(3, width=WIDTH), tmp_path / "official.pth"
    content = official(model, prefix="module." if form == "module" else "")
    if form == "plain":
        content = content["model"]
    if form == "no aliases":
        content["model"] = model.state_dict()
    torch.save(content, path, _use_new_zipfile_serialization=form != "legacy")
    found = read(path)
    assert same(found.state, dict(model.state_dict()))
    assert found.network["network"] == "refine"


def test_alias_alone_stands_for_the_trunk(tmp_path):
    model = RefineNet(3, width=WIDTH)
    content = official(model)
    content["model"] = {k: v for k, v in content["model"].items() if "features." not in k}
    torch.save(content, tmp_path / "official.pth")
    assert same(read(tmp_path / "official.pth").state, dict(model.state_dict()))


def test_alias_that_differs_is_refused(tmp_path):
    content = official(RefineNet(3, width=WIDTH))
    content["model"]["layer2_conv1.weight"] = content["model"]["layer2_conv1.weight"] + 1
    torch.save(content, tmp_path / "official.pth")
    with pytest.raises(UserError, match="official.pth.*layer2_conv1.weight.*features.5.weight"):
        read(tmp_path / "official.pth")


@pytest.mark.parametrize("width", [0.0625, 0.1, 0.3, 0.7])
def test_width_and_batch_norm_are_inferred(tmp_path, width):
    model, path = Classifier(4, width=width, batch_norm=width < 0.2), tmp_path / "official.pth"
    torch.save(official(model), path)
    found = read(path)
    assert found.network["num_classes"] == 4
    assert found.network["batch_norm"] == (width < 0.2)
    found.instantiate(build)


# What official files do not tell

def test_fixed_delta_is_never_guessed(tmp_path):
    path = tmp_path / "official.pth"
    torch.save(official(Classifier(3, "fixed", 0.4, width=WIDTH)), path)
    assert read(path).network["network"] == "refine"  # the same keys: the likelier network
    for arguments in ({"network": "classifier"}, {"drs": "fixed"}):
        with pytest.raises(UserError, match="official.pth.*--delta"):
            read(path, **arguments)
    found = read(path, network="classifier", delta=0.4).network
    assert (found["network"], found["drs"], found["delta"]) == ("classifier", "fixed", 0.4)
    assert read(path, drs="none").network["drs"] == "none"


@pytest.mark.parametrize("asked", [{"network": "refine"}, {"drs": "fixed", "delta": 0.5},
                                   {"drs": "none"}])
def test_learnable_file_cannot_be_something_else(tmp_path, asked):
    torch.save(official(Classifier(3, width=WIDTH)), tmp_path / "official.pth")
    with pytest.raises(UserError, match="learnable"):
        read(tmp_path / "official.pth", **asked)


@pytest.mark.parametrize("asked", [{"network": "refine"}, {"drs": "learnable"}, {"delta": 0.5}])
def test_own_file_is_not_contradicted(tmp_path, asked):
    path = own_file(tmp_path, Classifier(3, "fixed", 0.4, width=WIDTH))
    assert read(path, network="classifier", drs="fixed", delta=0.4).network["delta"] == 0.4
    option, = asked
    with pytest.raises(UserError, match=f"--{option} .*contradicts"):
        read(path, **asked)


def training_of(folder: Path, model: torch.nn.Module, classes: str = "abc", images: str = "pq",
                **options: object) -> Training:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    record = Record("test", options, list(classes), images={name: {"image": 1} for name in images})
    return Training(folder, model, optimizer, MultiStepLR(optimizer, [5]), record,
                    Runtime(torch.device("cpu"), 0, 1, None))


def own_file(folder: Path, model: torch.nn.Module, **options: object) -> Path:
    """last.pth (and best.pth) of a training of three epochs of four steps."""
    training = training_of(folder, model, **options)
    for _ in range(3):
        training.end_epoch({"loss": 1.0, "steps": 4}, 0.5)
    return training.last


def test_own_files(tmp_path):
    model = Classifier(3, "fixed", 0.7, WIDTH)
    found = read(own_file(tmp_path, model, lr=0.1))
    assert found.own and found.classes == ["a", "b", "c"] and found.network == model.config
    assert same(found.state, dict(model.state_dict()))
    assert found.rest["made_from"]["options"] == {"lr": 0.1} and "optimizer" in found.rest
    assert "optimizer" not in read(tmp_path / "best.pth").rest  # not needed to use the network
    assert {path.name for path in tmp_path.iterdir()} == {
        "last.pth", "best.pth", "metrics.json", "provenance.json"}


# Resume

def test_resume(tmp_path):
    model = RefineNet(3, width=WIDTH)
    assert not training_of(tmp_path, model).resume()
    own_file(tmp_path, model, lr=0.1, drs="none")
    same_one = training_of(tmp_path, model, lr=0.1, drs="none")
    assert same_one.resume() and len(same_one.history) == 3 and same_one.best_score == 0.5
    assert not same_one.resume(overwrite=True)
    before = (tmp_path / "last.pth").read_bytes()
    for changed, named in (({"lr": 0.2, "drs": "none"}, "--lr was 0.1, is 0.2"),
                           ({"lr": 0.1}, "--drs was none, is None"),
                           ({"lr": 0.1, "drs": "none", "seed": 1}, "--seed was None, is 1"),
                           ({"lr": 0.1, "drs": "none", "classes": "abd"},
                            "classes were a, b, c, are a, b, d"),
                           ({"lr": 0.1, "drs": "none", "images": "pqr"},
                            r"1 images are new in the list \(r\)"),
                           ({"lr": 0.1, "drs": "none", "images": "p"},
                            r"1 images are no longer listed \(q\)")):
        with pytest.raises(UserError, match=f"last.pth.*{named}.*--overwrite"):
            training_of(tmp_path, model, **changed).resume()
    assert (tmp_path / "last.pth").read_bytes() == before


def test_resume_refuses_damaged_and_foreign_files(tmp_path):
    model = RefineNet(3, width=WIDTH)
    path = own_file(tmp_path, model)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="last.pth"):
        training_of(tmp_path, model).resume()
    torch.save(official(model), path)
    with pytest.raises(UserError, match="last.pth"):
        training_of(tmp_path, model).resume()


def test_writing_fails_without_a_trace(tmp_path):
    (tmp_path / "file").write_text("")
    for target in (tmp_path / "file" / "x.pth", tmp_path / "nowhere" / "x.pth"):
        with pytest.raises(UserError, match="x.pth"):
            checkpoint.save(target, {"a": 1})
    with pytest.raises(Exception, match="pickle"):
        checkpoint.save(tmp_path / "x.pth", {"a": lambda: 1})
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_failed_write_keeps_the_old_file(tmp_path):
    checkpoint.save(tmp_path / "x.pth", {"a": torch.ones(2)})
    with pytest.raises(Exception, match="pickle"):
        checkpoint.save(tmp_path / "x.pth", {"a": lambda: 1})
    assert torch.equal(torch.load(tmp_path / "x.pth", weights_only=True)["a"], torch.ones(2))
    assert [path.name for path in tmp_path.iterdir()] == ["x.pth"]


# Hostile, damaged and foreign files

class Touch:
    """Unpickled without care, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple:
        return os.mkdir, (self.path,)


def hostile(kind: str, path: Path, proof: Path) -> None:
    content = official(Classifier(3, width=WIDTH))
    if kind == "figure":
        torch.save(content | {"miou": Touch(proof)}, path)
    elif kind == "weights":
        content["model"]["extra_conv4.bias"] = Touch(proof)
        torch.save(content, path)
    elif kind == "legacy":
        torch.save(content | {"iter": Touch(proof)}, path, _use_new_zipfile_serialization=False)
    elif kind == "plain pickle":
        path.write_bytes(pickle.dumps({"model": Touch(proof)}, protocol=2))
    else:  # eval, by way of a harmless name's place
        torch.save(content | {"miou": Evaluated(proof)}, path)


class Evaluated(Touch):
    """The same by eval."""

    def __reduce__(self) -> tuple:
        return eval, (f"__import__('os').mkdir({self.path!r})",)


@pytest.mark.parametrize("kind", ["figure", "weights", "legacy", "plain pickle", "eval"])
def test_hostile_file_is_refused_and_does_not_run(tmp_path, kind):
    path, proof = tmp_path / "hostile.pth", tmp_path / "proof"
    hostile(kind, path, proof)
    with pytest.raises(UserError, match="hostile.pth: refused, it asks for code"):
        read(path)
    assert not proof.exists()
    if kind != "plain pickle":  # the file would do harm if it were read without care
        torch.load(path, weights_only=False)
        assert proof.exists()


def test_disk_full_while_saving(tmp_path, monkeypatch):
    """torch.save reports a full disk as a RuntimeError of its own."""
    def full(content: object, file: object) -> None:
        try:
            raise OSError(28, "No space left on device")
        except OSError as error:
            raise RuntimeError("[enforce fail at inline_container.cc:603]") from error

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match="x.pth: No space left"):
        checkpoint.save(tmp_path / "x.pth", {})
    assert not list(tmp_path.iterdir())


def test_a_flipped_byte_is_no_crash(tmp_path):
    good = tmp_path / "good.pth"
    torch.save(official(RefineNet(2, width=WIDTH)), good)
    whole = good.read_bytes()
    rng = np.random.default_rng(0)
    for place in rng.integers(0, min(len(whole), 40_000), 40):
        spoilt = bytearray(whole)
        spoilt[place] ^= 0xFF
        (tmp_path / "spoilt.pth").write_bytes(spoilt)
        try:
            read(tmp_path / "spoilt.pth")  # a flipped weight cannot be told from a good one
        except UserError as error:
            assert "spoilt.pth" in str(error)


def test_what_does_not_fit_is_listed():
    model = RefineNet(3, width=WIDTH)
    state = dict(model.state_dict())
    state["extra_conv4.weight"] = torch.zeros(5, 32, 1, 1)
    del state["features.0.bias"]
    state["surplus"] = torch.zeros(1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(UserError) as caught:
        check_fit(model, state, Path("some.pth"))
    message = str(caught.value)
    assert "some.pth" in message and "1 missing: features.0.bias" in message
    assert "1 unexpected: surplus" in message
    assert "extra_conv4.weight ((5, 32, 1, 1), expected (3, 32, 1, 1))" in message
    assert same(before, dict(model.state_dict()))


# Export

@pytest.mark.parametrize("model", [Classifier(3, width=WIDTH), RefineNet(3, width=WIDTH),
                                   Classifier(3, "fixed", width=WIDTH, batch_norm=True)],
                         ids=["learnable", "refine", "fixed"])
def test_export_is_the_official_format(tmp_path, model, capsys):
    source, target = own_file(tmp_path, model), tmp_path / "exported.pth"
    checkpoint.main(["export", str(source), str(target)])
    assert "exported.pth" in capsys.readouterr().out
    raw = torch.load(target, weights_only=True)  # nothing in it needs NumPy or us
    assert set(raw) == {"model", "optimizer", "epoch", "iter", "miou"}
    assert raw["epoch"] == 3 and raw["iter"] == 12 and raw["miou"] == 0.5
    for alias, name in trunk_aliases().items():
        assert torch.equal(raw["model"][f"{alias}.weight"], raw["model"][f"{name}.weight"])
    drs = model.config.get("drs")
    found = read(target, drs=drs, delta=0.55 if drs == "fixed" else None)
    assert same(found.state, dict(model.state_dict()))
    assert {k: v for k, v in found.network.items() if k in model.config} == model.config


def test_export_as_a_command(tmp_path):
    source = own_file(tmp_path, Classifier(3, width=WIDTH))
    target = tmp_path / "exported.pth"
    done = run_script("-m", "utils.checkpoint", "export", source, target)
    assert "exported.pth: written" in done.stdout
    assert same(read(target).state, read(source).state)


@pytest.mark.parametrize("arguments", [["export", "missing.pth", "out.pth"],
                                       ["show", "missing.pth"]])
def test_command_line_errors_are_one_line(tmp_path, arguments):
    with pytest.raises(SystemExit, match="error: .*missing.pth"):
        checkpoint.main([arguments[0], *(str(tmp_path / name) for name in arguments[1:])])
    assert not list(tmp_path.iterdir())


def test_export_to_where_nothing_can_be_written(tmp_path):
    source = own_file(tmp_path, Classifier(3, width=WIDTH))
    with pytest.raises(SystemExit, match="error: .*out.pth"):
        checkpoint.main(["export", str(source), str(source / "out.pth")])
    shutil.copy(source, tmp_path / "copy.pth")
    with pytest.raises(SystemExit, match="error: .*out.pth"):
        checkpoint.main(["export", str(source), str(tmp_path / "nowhere" / "out.pth")])


def test_show(tmp_path, capsys):
    checkpoint.main(["show", str(own_file(tmp_path, Classifier(3, width=WIDTH)))])
    assert "'drs': 'learnable'" in capsys.readouterr().out


def test_a_network_of_a_file_is_made_without_the_compiler(tmp_path):
    """PyTorch imports it where the weights of a network on the meta device are drawn: 1.5 s more
    for each start of a labelling stage."""
    torch.save(official(Classifier(3, width=WIDTH)), tmp_path / "a.pth")
    subprocess.run([sys.executable, "-c", "import sys; from models import build; "
                    "from utils.checkpoint import read; read(sys.argv[1]).instantiate(build); "
                    "assert 'torch._dynamo' not in sys.modules", tmp_path / "a.pth"],
                   cwd=ROOT, check=True)
