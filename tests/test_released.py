"""The released files' conventions, on state dicts of networks made here and of the golden names."""

import pytest
import torch
from golden_recipe import KEYS

from models import build
from models.classifier import Classifier
from models.refine import RefineNet
from models.released import add_aliases, clean_state, infer_config
from models.vgg import trunk_aliases

WIDTH = 0.0625


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_aliases_are_those_of_the_released_files():
    aliases = trunk_aliases()
    assert len(aliases) == 13
    assert aliases["layer1_conv1"] == "features.0" and aliases["layer3_conv3"] == "features.14"
    assert aliases["layer5_conv3"] == "features.28"
    trunk = {name.rpartition(".")[0] for name in KEYS["refine"] if name.startswith("features.")}
    assert set(aliases.values()) == trunk


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_cleaning_undoes_aliases_and_wrappers(prefix):
    state = Classifier(3, width=WIDTH).state_dict()
    released = add_aliases(state)
    assert len(released) == len(state) + 26
    assert released["layer4_conv2.bias"] is state["features.19.bias"]
    assert same(clean_state({prefix + name: value for name, value in released.items()}), state)
    only_aliases = {k: v for k, v in released.items() if not k.startswith("features.")}
    assert same(dict(sorted(clean_state(only_aliases).items())), dict(sorted(state.items())))


@pytest.mark.parametrize(("damage", "words"), [
    ({"layer2_conv1.weight": torch.ones(1)}, "layer2_conv1.weight differs.*features.5.weight"),
    ({"module.features.5.weight": torch.ones(1)}, "two|differs.*features.5.weight"),
    ({"epoch": 3}, "'epoch' is no tensor"), ({7: torch.ones(1)}, "7 is no tensor")])
def test_what_is_no_state_dict_is_refused(damage, words):
    state = {"features.5.weight": torch.zeros(1)} | damage
    with pytest.raises(ValueError, match=words):
        clean_state(state)
    with pytest.raises(ValueError, match="no weights"):
        clean_state({})


@pytest.mark.parametrize("model", [
    Classifier(3, width=WIDTH), Classifier(5, "fixed", 0.4, width=0.3), Classifier(2, "none",
    width=0.1, batch_norm=True), RefineNet(3, width=0.7)], ids=lambda m: str(m.config))
def test_config_is_inferred_as_far_as_the_names_tell(model):
    asked = {name: model.config.get(name) for name in ("network", "drs", "delta")}
    if model.config.get("drs") == "learnable":
        asked = {}
    found = infer_config(model.state_dict(), **asked)
    expected = dict(model.config)
    assert found.pop("width") == pytest.approx(expected.pop("width"), rel=0.02)
    assert found == expected
    build({**found, "width": model.config["width"]}).load_state_dict(model.state_dict())


def test_config_of_the_golden_names():
    states = {name: {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
              for name, shapes in KEYS.items()}
    learnable = infer_config(states["drs_learnable"])
    assert learnable == {"network": "classifier", "num_classes": 20, "width": 1.0,
                         "batch_norm": False, "drs": "learnable", "delta": 0.55}
    assert infer_config(states["refine"])["network"] == "refine"
    assert infer_config(states["drs_fixed055"])["network"] == "refine"  # the likelier of the two
    assert infer_config(states["drs_fixed055"], drs="none")["network"] == "classifier"
    deeplab = next(name for name in KEYS if "deeplab" in name)
    assert infer_config(states[deeplab]) == {"network": "deeplab"}


@pytest.mark.parametrize(("drs", "asked", "words"), [
    ("learnable", {"network": "refine"}, "holds a classifier with learnable DRS"),
    ("learnable", {"drs": "fixed", "delta": 0.5}, "learnable"),
    ("fixed", {"drs": "learnable"}, "fixed or no DRS"),
    ("fixed", {"network": "classifier"}, "--delta"), ("fixed", {"drs": "fixed"}, "--delta")])
def test_what_contradicts_the_names_is_refused(drs, asked, words):
    with pytest.raises(ValueError, match=words):
        infer_config(Classifier(3, drs, width=WIDTH).state_dict(), **asked)


@pytest.mark.parametrize("state", [{"a": torch.zeros(2)}, {
    "features.28.weight": torch.zeros(1), "extra_conv4.weight": torch.zeros(())}])
def test_another_architecture_is_named(state):
    with pytest.raises(ValueError, match="another architecture.*begins with"):
        infer_config(state)
