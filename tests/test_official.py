"""Labels made by the script from an official-format file, against the rule written out again."""

import numpy as np
import torch
import torch.nn.functional as F
from golden_recipe import KEYS, golden_state
from PIL import Image

import make_pseudo_labels
from labelling.labels import read_label
from models.refine import RefineNet

MEAN, STD = np.array((0.485, 0.456, 0.406)), np.array((0.229, 0.224, 0.225))
LABELS = {"a": (2, 14), "b": (7,)}


def expected_label(network: RefineNet, image: Image.Image, classes: tuple[int, ...],
                   saliency: np.ndarray) -> np.ndarray:
    """Step 3 of the method, in NumPy, with all 20 classes."""
    pixels = np.asarray(image.resize((320, 320), Image.Resampling.BILINEAR), np.float64) / 255
    tensor = torch.from_numpy(((pixels - MEAN) / STD).transpose(2, 0, 1)[None]).float()
    scores = np.zeros((20, image.height, image.width), np.float32)
    for side in (256, 320, 384):
        with torch.no_grad():
            scaled = F.interpolate(tensor, (side, side), mode="bilinear", align_corners=False)
            maps = F.interpolate(network.class_maps(scaled), (image.height, image.width),
                                 mode="bilinear", align_corners=True)
        scores = np.maximum(scores, maps[0].numpy())
    present = np.zeros((20, 1, 1), np.float32)
    present[list(classes)] = 1
    scores *= present
    scores[scores < 0.2] = 0
    salient = (saliency > 50).astype(np.float32)
    everything = np.concatenate((1 - salient[None], scores))
    label = everything.argmax(0).astype(np.uint8)
    unclaimed = (salient == 1) & (label == 0)
    label[(everything > 0.9).sum(0) > 2] = 255
    label[unclaimed] = 255
    return label


def test_labels_from_an_official_file_follow_the_rule(tmp_path):
    state = golden_state(KEYS["refine"])
    torch.save({"model": state, "optimizer": {}, "epoch": 30, "iter": 1, "miou": 0.7},
               tmp_path / "Refine_DRS_learnable.pth")
    network = RefineNet()
    network.load_state_dict(state)
    network.eval()
    rng, root = np.random.default_rng(0), tmp_path / "VOC2012"
    for folder in ("JPEGImages", "saliency_map"):
        (root / folder).mkdir(parents=True)
    (root / "train_aug.txt").write_text(
        "".join(f"{name} {' '.join(map(str, c))}\n" for name, c in LABELS.items()))
    saliency = {}
    for name in LABELS:
        noise = Image.fromarray(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8))
        noise.resize((97, 71), Image.Resampling.BICUBIC).save(root / "JPEGImages" / f"{name}.jpg")
        saliency[name] = rng.integers(0, 101, (71, 97), dtype=np.uint8)
        Image.fromarray(saliency[name]).save(root / "saliency_map" / f"{name}.png")
    make_pseudo_labels.main(make_pseudo_labels.parse([
        "--data-root", str(root), "--run-dir", str(tmp_path / "run"), "--device", "cpu", "--amp",
        "off", "--num-workers", "0", "--checkpoint", str(tmp_path / "Refine_DRS_learnable.pth")]))
    for name, classes in LABELS.items():
        with Image.open(root / "JPEGImages" / f"{name}.jpg") as image:
            expected = expected_label(network, image.convert("RGB"), classes, saliency[name])
        label = read_label(tmp_path / "run" / "pseudo_labels" / f"{name}.png")
        assert len(np.unique(expected)) > 1
        # Pillow and torchvision may round a resized pixel differently.
        assert (label == expected).mean() > 0.999
