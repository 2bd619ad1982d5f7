"""The figures that the official networks, trainings and rules gave, and ours against them."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden_recipe import GOLDEN, KEYS, load_golden, relative_error, rnd

from labelling.maps import load_maps, save_maps
from labelling.metrics import ConfusionMatrix
from labelling.rule import background_scores, fuse
from models.classifier import Classifier, classification_loss
from models.drs import FixedDRS, LearnableDRS
from models.localization import upsample
from models.refine import RefineNet, refinement_loss
from train_drs import LR_FACTORS
from utils.setup import named_groups

CLASSES = ((3, 14), (8,))  # of the two golden images
LABELS = torch.stack([F.one_hot(torch.tensor(c), 20).sum(dim=0) for c in CLASSES]).float()
OUTPUT, LOSS = 1e-4, 1e-3  # agreement, relative


@pytest.fixture(autouse=True, scope="module")
def _two_threads():
    torch.set_num_threads(2)  # the networks here have full size
    yield
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def learnable() -> Classifier:
    return load_golden(Classifier(drs="learnable")).eval()


@pytest.fixture(scope="module")
def fixed() -> Classifier:
    return load_golden(Classifier(drs="fixed", delta=0.55)).eval()


@pytest.fixture(scope="module")
def refine() -> RefineNet:
    return load_golden(RefineNet()).eval()


def shapes(model: torch.nn.Module) -> dict[str, list[int]]:
    return {name: list(value.shape) for name, value in model.state_dict().items()}


def test_state_dict_keys_and_shapes():
    with torch.device("meta"):
        assert shapes(Classifier(drs="learnable")) == KEYS["drs_learnable"]
        assert shapes(Classifier(drs="fixed")) == KEYS["drs_fixed055"]
        assert shapes(RefineNet()) == KEYS["refine"]


@pytest.mark.parametrize(("name", "kind", "modules"), [("learnable", LearnableDRS, 16),
                                                       ("fixed055", FixedDRS, 16)])
def test_classifier(name, kind, modules, request):
    model = request.getfixturevalue(name.removesuffix("055"))
    assert sum(isinstance(module, kind) for module in model.modules()) == modules
    images = rnd("image", (2, 3, 96, 96))
    with torch.no_grad():
        assert relative_error(model(images), GOLDEN[f"classifier_{name}_logits"]) < OUTPUT
    maps = model.localization_maps(images, LABELS, [(96, 96)] * 2, [96])
    assert relative_error(torch.cat(maps), GOLDEN[f"classifier_{name}_cam_present"]) < OUTPUT


def test_localization_maps_and_their_size_on_disk(learnable, tmp_path):
    image = F.interpolate(rnd("image", (2, 3, 96, 96))[:1], (320, 320), mode="bilinear",
                          align_corners=False)
    maps, = learnable.localization_maps(image, LABELS[:1], [(320, 320)], (256, 320, 384))
    maps = (maps * 255).to(torch.uint8).numpy()
    for ours, number in zip(maps, CLASSES[0], strict=True):
        expected = GOLDEN[f"localization_uint8_class{number}"].astype(int)
        assert np.abs(ours[::4, ::4].astype(int) - expected).max() <= 1
    save_maps(tmp_path / "maps.png", maps, CLASSES[0])
    assert (tmp_path / "maps.png").stat().st_size < 60_000
    assert (load_maps(tmp_path / "maps.png", 20)[0] == maps).all()


def test_classifier_training():
    model = load_golden(Classifier(drs="learnable")).train()
    groups = model.parameter_groups()
    sizes = [(len(group), sum(p.numel() for p in group)) for group in groups.values()]
    assert sizes == [tuple(row) for row in GOLDEN["classifier_group_sizes"].tolist()]
    optimizer = torch.optim.SGD(named_groups(groups, 1e-3, LR_FACTORS, weight_decay=5e-4),
                                momentum=0.9, nesterov=True)
    images = rnd("train", (2, 3, 64, 64))
    losses = four_steps(optimizer, lambda: classification_loss(model(images), LABELS))
    np.testing.assert_allclose(losses, GOLDEN["classifier_train_losses"], rtol=LOSS)
    norms = norms_of(model, "features.0.weight", "features.28.weight", "features.28.bias",
                     "layer5_relu3.fc.0.weight", "extra_conv4.weight", "extra_conv4.bias")
    np.testing.assert_allclose(norms, GOLDEN["classifier_train_norms"], rtol=OUTPUT)


def test_refinement_network(refine):
    images = rnd("image", (2, 3, 96, 96))
    with torch.no_grad():
        unlabelled = upsample(refine(images), (96, 96))
    labelled = unlabelled * LABELS[:, :, None, None]
    present = torch.stack([labelled[i, c] for i, numbers in enumerate(CLASSES) for c in numbers])
    assert relative_error(present, GOLDEN["refine_labelled_present"]) < OUTPUT
    assert relative_error(unlabelled.sum((2, 3)), GOLDEN["refine_unlabelled_sum"]) < OUTPUT


def test_refinement_training():
    # In float64: Adam's first steps divide gradients near zero by themselves, so the rounding of
    # one machine's float32 kernels (oneDNN's on some CPUs) shows in the third digit of the loss.
    model = load_golden(RefineNet()).double().train()
    maps, (owner, number) = rnd("att", (2, 20, 64, 64)).abs().clamp(0, 1), LABELS.nonzero().T
    images = rnd("train", (2, 3, 64, 64)).double()
    stored = (maps[owner, number] * 255).to(torch.uint8)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    losses = four_steps(optimizer, lambda: refinement_loss(model(images), stored, owner, number))
    np.testing.assert_allclose(losses, GOLDEN["refine_train_losses"], rtol=OUTPUT)
    norms = norms_of(model, "features.0.weight", "extra_conv4.weight", "extra_conv4.bias")
    np.testing.assert_allclose(norms, GOLDEN["refine_train_norms"], rtol=OUTPUT)


def four_steps(optimizer: torch.optim.Optimizer, loss_of) -> list[float]:
    losses = []
    for _ in range(4):
        loss = loss_of()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def norms_of(model: torch.nn.Module, *names: str) -> list[float]:
    state = model.state_dict()
    return [float(state[name].norm()) for name in names]


@pytest.mark.parametrize(("ignore", "name"), [(True, "pseudo_label"),
                                              (False, "pseudo_label_validation_rule")])
def test_pseudo_label_rule(ignore, name):
    saliency = torch.from_numpy(GOLDEN["pseudo_saliency_png"] > 50)
    background = background_scores(tuple(saliency.shape), saliency, 0.0)
    label = fuse(torch.from_numpy(GOLDEN["pseudo_maps_present"]), [3, 7, 14], background,
                 alpha=0.2, ignore=ignore)
    np.testing.assert_array_equal(label.numpy(), GOLDEN[name])
    assert {0, 4, 8, 15} <= set(np.unique(GOLDEN[name]))  # the figure covers every class


def test_metrics():
    matrix = ConfusionMatrix(21)
    for target, prediction in zip(GOLDEN["metric_gt"], GOLDEN["metric_pred"], strict=True):
        matrix.update(prediction, target)
    scores = matrix.scores()
    ours = (scores.pixel_accuracy, scores.mean_accuracy, scores.frequency_weighted_iou,
            scores.miou)
    np.testing.assert_allclose(ours, GOLDEN["metric_scores"], rtol=1e-12)
    present = np.array(scores.class_pixels) > 0
    expected = GOLDEN["metric_class_iou"]
    np.testing.assert_allclose(np.array(scores.class_iou)[present], expected[present], rtol=1e-12)
