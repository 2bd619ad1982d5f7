"""Lists and labels, all kinds of image files, joint transforms, per-sample randomness, loaders.

Colour jitter has a file of its own.
"""

import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, DataLoader

import train_drs
from datasets import transforms
from datasets.creatures import Pen
from datasets.images import read_companion, read_image
from datasets.layout import VOC_CLASSES, DataRoot, Entry, label_vector
from datasets.voc import VOCDataset, collate, validation_set
from labelling.labels import save_label
from labelling.maps import save_maps
from utils.files import UserError
from utils.loading import DeviceBatches, inference_batches, training_batches
from utils.runtime import Runtime

CPU = torch.device("cpu")


# Lists and labels

@pytest.fixture
def voc(tmp_path: Path) -> DataRoot:
    """A VOC root without classes.txt: five images, three of them annotated."""
    for folder in ("JPEGImages", "Annotations", "ImageSets/Segmentation", "SegmentationClassAug"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("2007_000032", "2007_000039", "two words", "two", "2008_000001"):
        Image.new("RGB", (6, 4)).save(tmp_path / "JPEGImages" / f"{name}.jpg")
        save_label(tmp_path / "SegmentationClassAug" / f"{name}.png", np.zeros((4, 6)))
    annotate(tmp_path, "2007_000032", "person", "aeroplane", "person")
    annotate(tmp_path, "2007_000039", "tvmonitor")
    annotate(tmp_path, "two")
    return DataRoot(tmp_path)


def annotate(root: Path, name: str, *classes: str) -> None:
    """A VOC annotation; parts of objects have names too, which are no classes."""
    objects = "".join(f"<object><part><name>head</name></part><name>{c}</name></object>"
                      for c in classes)
    (root / "Annotations" / f"{name}.xml").write_text(
        f"<annotation><filename>{name}.jpg</filename>{objects}</annotation>")


def entries_of(root: DataRoot, text: str, labels: bool = True) -> list[Entry]:
    path = root.root / "some_list.txt"
    path.write_text(text)
    return root.entries(str(path), labels)


def test_default_classes_are_those_of_voc(voc):
    assert voc.classes == list(VOC_CLASSES) and len(voc.classes) == 20


@pytest.mark.parametrize(("line", "image_id", "labels"), [
    ("2007_000032 0 14", "2007_000032", (0, 14)),
    ("2007_000032 14 0 14", "2007_000032", (0, 14)),
    ("2007_000032 person", "2007_000032", (14,)),
    ("2007_000032", "2007_000032", (0, 14)),  # from the annotation
    ("2007_000039", "2007_000039", (19,)),
    ("two", "two", ()),  # annotated: none of the classes
    ("two 3", "two", (3,)),
    ("two words 3", "two words", (3,)),
    ("two words", None, None),  # neither labels nor an annotation
    ("two\t3", "two", (3,)),
    ("2007_000032.jpg 5", "2007_000032", (5,)),
    ("\ufeff2007_000032 5\r\n\r\n", "2007_000032", (5,)),
])
def test_list_lines(voc, line, image_id, labels):
    if image_id is None:
        with pytest.raises(UserError, match="two words.*no image-level labels"):
            entries_of(voc, line)
    else:
        assert entries_of(voc, line) == [Entry(image_id, labels)]


def test_labels_are_read_only_where_they_are_needed(voc):
    shutil.rmtree(voc.annotation_dir)
    assert entries_of(voc, "two\n2007_000032\n", labels=False) == [
        Entry("two", None), Entry("2007_000032", None)]


def test_named_lists(voc):
    (voc.list_dir / "train.txt").write_text("two 1\n")
    assert voc.entries("train") == [Entry("two", (1,))]
    (voc.list_dir / "train_cls.txt").write_text("two 2\n")  # the official lists' names
    assert voc.entries("train") == [Entry("two", (2,))]
    (voc.list_dir / "val.txt").write_text("2008_000001\n")
    assert [entry.id for entry in voc.entries("train_aug", labels=False)] == [
        "2007_000032", "2007_000039", "two", "two words"]  # the masks that are not in val


def test_label_vector():
    assert label_vector((0, 3), 4).tolist() == [1, 0, 0, 1]
    assert label_vector((), 2).tolist() == label_vector(None, 2).tolist() == [0, 0]


def test_folder_of_images(tmp_path):
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    Image.new("RGB", (4, 4)).save(tmp_path / ".hidden.png")
    (tmp_path / "classes.txt").write_text("cat\n\nsea horse\n")
    (tmp_path / "mine.txt").write_text("a\tsea horse\n")
    root = DataRoot(tmp_path)
    assert root.classes == ["cat", "sea horse"] and set(root.images) == {"a"}
    assert root.entries("mine") == [Entry("a", (1,))]


# Image files

def corners(image: Image.Image) -> list[tuple[int, ...]]:
    """Colours near the four corners, row by row."""
    right, bottom = image.width - 2, image.height - 2
    return [image.getpixel(at) for at in ((1, 1), (right, 1), (1, bottom), (right, bottom))]


@pytest.fixture
def picture() -> Image.Image:
    """20x12 pixels, each quarter in a colour of its own."""
    array = np.zeros((12, 20, 3), np.uint8)
    array[:6, :10], array[:6, 10:] = (255, 0, 0), (0, 255, 0)
    array[6:, :10], array[6:, 10:] = (0, 0, 255), (255, 255, 255)
    return Image.fromarray(array)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(picture, tmp_path, orientation):
    stored = {1: None, 2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM",
              5: "TRANSPOSE", 6: "ROTATE_90", 7: "TRANSVERSE", 8: "ROTATE_270"}[orientation]
    turned = picture if stored is None else picture.transpose(Image.Transpose[stored])
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned.save(tmp_path / "image.png", exif=exif)
    upright, found = read_image(tmp_path / "image.png")
    assert found == orientation
    assert upright.mode == "RGB" and upright.size == (20, 12)
    assert corners(upright) == corners(picture)
    # A mask drawn on the file as it is stored is turned with it; an upright one is left alone.
    mask = np.arange(12 * 20, dtype=np.uint8).reshape(12, 20)
    save_label(tmp_path / "upright.png", mask)
    assert (read_companion(tmp_path / "upright.png", (12, 20), orientation) == mask).all()
    if orientation >= 5:
        turned = Image.fromarray(mask).transpose(Image.Transpose[stored])
        save_label(tmp_path / "stored.png", np.asarray(turned))
        assert (read_companion(tmp_path / "stored.png", (12, 20), orientation) == mask).all()


@pytest.mark.parametrize("size", [(20, 12), (24, 10), (240, 1), (12, 19)])
def test_a_mask_of_another_shape_is_refused(tmp_path, size):
    """Also one of as many pixels."""
    save_label(tmp_path / "mask.png", np.zeros(size, np.uint8))
    with pytest.raises(UserError, match=rf"mask.png: {size[1]}x{size[0]} pixels.*20x12"):
        read_companion(tmp_path / "mask.png", (12, 20), orientation=1)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "1", "RGBA", "CMYK"])
def test_image_modes(picture, tmp_path, mode):
    path = tmp_path / ("image.tif" if mode == "CMYK" else "image.png")
    picture.convert(mode).save(path)
    image, _ = read_image(path)
    assert image.mode == "RGB" and image.size == (20, 12)
    expected = picture.convert(mode).convert("RGB")
    assert np.abs(np.asarray(image, int) - np.asarray(expected, int)).max() <= 2
    assert corners(image)[3] == (255, 255, 255)


def test_sixteen_bit_grey(tmp_path):
    values = np.array([[0, 255, 256, 0x1234, 0xFFFF]], np.uint16).repeat(2, axis=0)
    Image.fromarray(values).save(tmp_path / "image.png")
    image, _ = read_image(tmp_path / "image.png")
    assert image.mode == "RGB"
    assert np.asarray(image)[0].tolist() == [[v] * 3 for v in (0, 0, 1, 0x12, 0xFF)]


def test_image_of_one_pixel(tmp_path):
    Image.new("RGB", (1, 1), (9, 8, 7)).save(tmp_path / "image.png")
    image, _ = read_image(tmp_path / "image.png")
    assert image.getpixel((0, 0)) == (9, 8, 7)
    sample = transforms.Evaluation(32).sample({"image": image}, np.random.default_rng(0))
    assert sample["image"].shape == (3, 32, 32)
    assert (sample["image"].amax((1, 2)) == torch.tensor([9, 8, 7])).all()


# Joint transforms

SIZE = (40, 60)
MARK = (slice(10, 26), slice(36, 52))  # off the centre both ways
SIDE = 48
TRANSFORMS = {"classifier": transforms.ClassifierTraining(64, SIDE),
              "refinement": transforms.RefinementTraining(SIDE),
              "evaluation": transforms.Evaluation(SIDE)}


@pytest.fixture
def marked(tmp_path: Path) -> DataRoot:
    """One image with a white mark on grey, and the same mark in all that belongs to it."""
    for folder in ("JPEGImages", "masks", "saliency", "maps"):
        (tmp_path / folder).mkdir()
    mark = np.zeros(SIZE, bool)
    mark[MARK] = True
    Image.fromarray(np.where(mark, 255, 40).astype(np.uint8)).save(tmp_path / "JPEGImages/a.png")
    mask = np.where(mark, 7, 0)
    mask[0] = 255  # numbers between which nothing may be interpolated
    save_label(tmp_path / "masks/a.png", mask)
    Image.fromarray(np.where(mark, 51, 50).astype(np.uint8)).save(tmp_path / "saliency/a.png")
    save_maps(tmp_path / "maps/a.png", np.where(mark, 200, 0).astype(np.uint8)[None], [6])
    return DataRoot(tmp_path)


def marked_dataset(root: DataRoot, transform: transforms.Transform) -> VOCDataset:
    return VOCDataset(root, [Entry("a", (6,))], transform, saliency_dir=root.root / "saliency",
                      maps_dir=root.root / "maps", mask_dir=root.root / "masks")


def prepared(dataset: VOCDataset, key: int | tuple[int, int]) -> dict:
    """A sample after both halves of its transform."""
    batch = dataset.transform.batch(collate([dataset[key]]))
    assert batch.get("map_class", torch.tensor([6])).tolist() == [6]  # so "maps" is of class 6
    return {name: value[0] for name, value in batch.items() if name != "errors"}


def overlap(one: torch.Tensor, other: torch.Tensor) -> float:
    """Intersection over union of two marks; 1 where neither is in the picture."""
    union = (one | other).sum().item()
    return (one & other).sum().item() / union if union else 1.0


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_mark_stays_aligned(marked, name):
    side, dataset = SIDE, marked_dataset(marked, TRANSFORMS[name])
    places, heights = set(), set()
    for epoch in range(12):
        sample = prepared(dataset, (epoch, 0))
        assert sample["image"].shape == (3, side, side)
        assert sample["maps"].shape == (side, side) and sample["maps"].dtype == torch.uint8
        assert sample["labels"].tolist() == label_vector((6,), 20).tolist()
        assert sample["size"] == SIZE
        mask, saliency = sample["mask"], sample["saliency"]
        assert mask.shape == saliency.shape == (side, side)
        assert set(mask.unique().tolist()) <= {0, 7, 255}
        assert set(saliency.unique().tolist()) <= {0, 1}
        reference = mask == 7
        grey = sample["image"].mean(0)
        seen = {"saliency": saliency == 1, "maps": sample["maps"] >= 100}
        if reference.any() and not reference.all():
            seen["image"] = grey > (grey.min() + grey.max()) / 2
        for what, found in seen.items():
            assert overlap(found, reference) > 0.75, (epoch, what)
        # Scores are moved but never jittered.
        assert sample["maps"].max() in (0, 200) or not reference.any()
        if reference.any():
            places.add(reference.nonzero()[:, 1].float().mean().item() > side / 2)
            heights.add(reference.nonzero()[:, 0].float().mean().item())
    if name == "evaluation":
        assert places == {True} and len(heights) == 1
    else:
        assert places == {True, False}  # flipped in some epochs
        assert (len(heights) > 3) == (name == "classifier")  # cropped at different places


def test_maps_are_interpolated_and_masks_are_not(marked):
    sample = prepared(marked_dataset(marked, transforms.Evaluation(96)), 0)
    assert len(sample["maps"].unique()) > 2
    assert set(sample["mask"].unique().tolist()) == {0, 7, 255}


def test_pixels_are_those_of_pillow(marked):
    """Resized by Pillow as 8-bit image, then (x / 255 - mean) / std, in channels_last."""
    with Image.open(marked.root / "JPEGImages/a.png") as file:
        pixels = np.asarray(file.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR))
    sample = marked_dataset(marked, transforms.Evaluation(SIDE))[0]
    assert sample["image"].dtype == torch.uint8
    assert (sample["image"].permute(1, 2, 0).numpy() == pixels).all()
    image = prepared(marked_dataset(marked, transforms.Evaluation(SIDE)), 0)["image"]
    expected = (pixels / 255 - np.array(transforms.MEAN)) / np.array(transforms.STD)
    np.testing.assert_allclose(image.permute(1, 2, 0).numpy(), expected, atol=1e-6)
    assert image.permute(1, 2, 0).is_contiguous()


def test_masks_are_resized_as_by_pillow(marked):
    for folder, name in (("masks", "mask"), ("saliency", "saliency")):
        with Image.open(marked.root / folder / "a.png") as file:
            expected = np.asarray(file.resize((SIDE, SIDE), Image.Resampling.NEAREST))
        found = marked_dataset(marked, transforms.Evaluation(SIDE))[0][name].numpy()
        assert (found == (expected if name == "mask" else expected > 50)).all()


def test_images_travel_small(marked):
    """Between the halves: 8 bits a pixel, and only the maps that there are."""
    for transform in TRANSFORMS.values():
        batch = collate([marked_dataset(marked, transform)[(e, 0)] for e in range(3)])
        assert batch["image"].dtype == batch["maps"].dtype == torch.uint8
        assert batch["image"].is_contiguous(memory_format=torch.channels_last)
        assert batch["maps"].shape[0] == 3


def test_colour_is_jittered(marked):
    dataset = marked_dataset(marked, transforms.RefinementTraining(SIDE))
    darkest = {round(prepared(dataset, (epoch, 0))["image"].min().item(), 4)
               for epoch in range(6)}
    assert len(darkest) > 3


def test_labelling_keeps_saliency_at_the_image_size(marked):
    dataset = VOCDataset(marked, [Entry("a", (6,))], transforms.ImageOnly(48, True),
                         saliency_dir=marked.root / "saliency")
    sample = dataset[0]
    assert sample["image"].shape == (3, 48, 48)
    assert sample["saliency"].shape[-2:] == SIZE and sample["pixels"].shape == (*SIZE, 3)
    assert sample["saliency"][MARK].all() and sample["saliency"].sum() == 16 * 16


def test_only_what_is_asked_for_is_opened(marked):
    for folder in ("masks", "saliency", "maps"):
        shutil.rmtree(marked.root / folder)
    sample = VOCDataset(marked, [Entry("a", (6,))], transforms.Evaluation(16))[0]
    assert set(sample) == {"id", "size", "image", "labels"}


# Randomness

def dataset_of(demo: Path, seed: int = 0) -> VOCDataset:
    root = DataRoot(demo)
    return VOCDataset(root, root.entries("train_aug"), transforms.ClassifierTraining(40, 32),
                      seed=seed)


def test_randomness_is_a_function_of_seed_epoch_and_index(demo):
    dataset = dataset_of(demo)
    first = prepared(dataset, (3, 1))["image"]
    torch.manual_seed(99)
    random.seed(99)
    np.random.seed(99)
    torch.rand(5)
    state = torch.get_rng_state()
    assert torch.equal(prepared(dataset, (3, 1))["image"], first)
    assert torch.equal(torch.get_rng_state(), state)  # and it leaves the global one alone
    assert not torch.equal(prepared(dataset, (4, 1))["image"], first)
    assert not torch.equal(prepared(dataset_of(demo, seed=1), (3, 1))["image"], first)
    assert torch.equal(prepared(dataset, 1)["image"], prepared(dataset, (0, 1))["image"])


def batches(demo: Path, rank: int = 0, world: int = 1, workers: int = 0) -> list[dict]:
    """Those of two epochs, as a training gets them."""
    loader: DeviceBatches = training_batches(
        dataset_of(demo), 4, Runtime(CPU, rank, world, None), 0, workers, collate)
    found = []
    for epoch in (1, 2):
        loader.set_epoch(epoch)
        found += list(loader)
    return found


def test_batches_do_not_depend_on_workers(demo):
    one, other = (batches(demo, workers=workers) for workers in (0, 2))
    assert len(one) == len(other) == 4
    for a, b in zip(one, other, strict=True):
        assert a["id"] == b["id"] and torch.equal(a["image"], b["image"])
    assert [b["id"] for b in one[:2]] != [b["id"] for b in one[2:]]  # shuffled anew


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_workers_by_any_start_method(marked, method):
    """Datasets and transforms can be given to a process that does not share our memory."""
    sets = [marked_dataset(marked, transform)
            for transform in (*TRANSFORMS.values(), transforms.ImageOnly(SIDE))]
    loader = DataLoader(ConcatDataset(sets), 1, num_workers=1, collate_fn=collate,
                        multiprocessing_context=method)
    for dataset, batch in zip(sets, loader, strict=True):
        expected = collate([dataset[0]])
        assert batch.keys() == expected.keys()
        assert torch.equal(batch["image"], expected["image"])


@pytest.mark.parametrize("world", [2, 4])
def test_processes_share_the_batches_of_one(demo, world):
    whole, parts = batches(demo), [batches(demo, rank, world) for rank in range(world)]
    for i, batch in enumerate(whole):
        shared = {image_id: image for part in parts
                  for image_id, image in zip(part[i]["id"], part[i]["image"], strict=True)}
        assert sorted(shared) == sorted(batch["id"])
        for image_id, image in zip(batch["id"], batch["image"], strict=True):
            assert torch.equal(shared[image_id], image)


@pytest.mark.parametrize("todo", [range(8), [0, 3, 4, 7], [5], []])
def test_inference_shares_out_whole_batches(demo, todo):
    dataset = dataset_of(demo)
    names = [entry.id for entry in dataset.entries]
    groups = [set(names[:3]), set(names[3:6]), set(names[6:])]
    wanted = {names[i] for i in todo}
    for world in (1, 2, 3):
        seen = [set(batch["id"]) for rank in range(world) for batch in inference_batches(
            dataset, list(todo), 3, Runtime(CPU, rank, world, None), 0, collate)]
        # An image keeps its company, however many processes there are and whatever is finished.
        assert all(ids in groups and ids & wanted for ids in seen)
        assert sum(map(len, seen)) == len(set().union(*seen)) and wanted <= set().union(*seen)


def test_training_batch_cannot_be_larger_than_the_list(demo):
    with pytest.raises(UserError, match="--batch-size 9.*8 images"):
        training_batches(dataset_of(demo), 9, Runtime(CPU, 0, 1, None), 0, 0, collate)


def test_collate():
    samples = [{"id": "a", "image": torch.zeros(3, 2, 2), "size": (2, 2),
                "saliency": torch.zeros(5, 4)},
               {"error": "b.jpg: no such image"},
               {"id": "c", "image": torch.ones(3, 2, 2), "size": (3, 2),
                "saliency": torch.zeros(2, 4)}]
    batch = collate(samples)
    assert batch["errors"] == ["b.jpg: no such image"]
    assert batch["id"] == ["a", "c"] and batch["size"] == [(2, 2), (3, 2)]
    assert batch["image"].shape == (2, 3, 2, 2)
    assert [tuple(s.shape) for s in batch["saliency"]] == [(5, 4), (2, 4)]
    assert collate(samples[1:2]) == {"errors": ["b.jpg: no such image"]}


def test_maps_stay_sparse():
    transform, classes = transforms.Evaluation(4), ((1, 3), (), (2,))
    maps = [torch.full((len(numbers), 4, 4), 9, dtype=torch.uint8) for numbers in classes]
    batch = collate([{"image": torch.zeros(3, 4, 4, dtype=torch.uint8), "labels": torch.zeros(5),
                      "maps": one, "map_class": torch.tensor(numbers, dtype=torch.long)}
                     for one, numbers in zip(maps, classes, strict=True)])
    assert batch["maps"].shape == (3, 4, 4)
    assert batch["map_owner"].tolist() == [0, 0, 2] and batch["map_class"].tolist() == [1, 3, 2]
    assert transform.batch(batch)["maps"] is batch["maps"]


def test_tolerant_dataset_reports_what_it_cannot_read(own_demo):
    root = DataRoot(own_demo)
    entries = root.entries("train_aug")
    path = root.image(entries[2].id)
    path.write_bytes(path.read_bytes()[:300])
    tolerant = VOCDataset(root, entries, transforms.Evaluation(32), tolerant=True)
    assert path.name in tolerant[2]["error"] and "image" in tolerant[1]
    with pytest.raises(UserError, match=path.name):
        VOCDataset(root, entries, transforms.Evaluation(32))[2]


def test_validation_needs_masks_and_a_background_cue(own_demo):
    args = train_drs.parse(["--data-root", str(own_demo), "--image-size", "32"])
    dataset = validation_set(DataRoot(own_demo), args)
    assert set(dataset[0]) == {"id", "size", "image", "labels", "saliency", "mask"}
    assert dataset[0]["mask"].shape[-2:] == (32, 32)
    args.val_list = "none"
    assert validation_set(DataRoot(own_demo), args) is None
    args.val_list = "train"
    shutil.rmtree(own_demo / "SegmentationClassAug")
    assert validation_set(DataRoot(own_demo), args) is None


def test_validation_uses_the_saliency_maps_that_were_asked_for(own_demo, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(own_demo / "saliency_map", other)
    for path in other.iterdir():
        Image.new("L", Image.open(path).size, 255).save(path)
    args = train_drs.parse(["--data-root", str(own_demo), "--image-size", "32", "--saliency-dir",
                            str(other)])
    assert validation_set(DataRoot(own_demo), args)[0]["saliency"].all()


def test_the_demo_evaluates_on_other_scenes(demo):
    """Of one number, the images of the lists differ: each list has a seed of its own."""
    photos = [demo / "JPEGImages" / f"{split}_000000.jpg" for split in ("train", "val", "single")]
    assert len({path.read_bytes() for path in photos}) == 3


@pytest.mark.parametrize("edge", [np.s_[0, 3], np.s_[-1, 3], np.s_[3, 0], np.s_[3, -1]])
def test_a_head_at_any_edge_is_cut(edge):
    pen = Pen(np.zeros((64, 64, 3), np.uint8), np.random.default_rng(0), np.array((32, 32)), 9.0)
    pen.head = np.zeros((8, 8), np.uint8)
    assert not pen.head_cut()
    pen.head[edge] = 1
    assert pen.head_cut()
