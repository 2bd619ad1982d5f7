"""Bad inputs as a table: what is bad, how it is made, which command reads it, what must be said.

In the names of files and in the commands ROOT, RUN and TMP stand for a data root (`conftest.demo`),
a run folder with all results on it, and an empty folder: copies that a case may spoil.
"""

import io
import os
import socket
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from helpers import MACHINE, TRAINING
from PIL import Image

from labelling.labels import save_label
from utils.checkpoint import FORMAT

Spoil = Callable[[Callable[[str], Path]], None]  # of a name, as in the table, the path makes


@dataclass(frozen=True)
class Case:
    """The command must end in one line with all of `words`, and status 1 (2: a mistyped option)."""

    spoil: Spoil
    command: tuple[Any, ...]
    words: str
    status: int = 1


FIRST = "train_000000"  # the first image of train_aug and of train
IMAGE, MASK = f"ROOT/JPEGImages/{FIRST}.jpg", f"ROOT/SegmentationClassAug/{FIRST}.png"
SALIENCY, XML = f"ROOT/saliency_map/{FIRST}.png", f"ROOT/Annotations/{FIRST}.xml"
MAP, LIST = f"RUN/localization_maps/{FIRST}.png", "ROOT/ImageSets/Segmentation/train_aug.txt"
CLASSES, LAST, OWN = "ROOT/classes.txt", "RUN/classifier/last.pth", "TMP/own.pth"
FINAL = "RUN/deeplab/models/tiny/small/train/checkpoint_final.pth"
LOGITS = "RUN/deeplab/features/tiny/small/train/logits"

WHERE = ("--data-root", "ROOT", "--run-dir", "RUN")
NEW = ("--output-dir", "RUN/new")
GO_ON = ("train_drs", *WHERE, *MACHINE, *TRAINING, "--epochs", 3)  # what RUN holds
TRAIN = (*GO_ON, *NEW, "--val-list", "none")
REFINE = ("train_refine", *WHERE, *MACHINE, *TRAINING, *NEW, "--val-list", "none")
MAPS = ("make_localization_maps", *WHERE, *MACHINE, *NEW)
LABELS = ("make_pseudo_labels", *WHERE, *MACHINE, *NEW)
SCORE_MAPS = ("evaluate", *WHERE, *NEW, "--maps-dir", "RUN/localization_maps")
SCORE = ("evaluate", *WHERE, *NEW, "--labels-dir", "TMP/labels")
EXPORT = ("export_labels", "--data-root", "ROOT", *NEW, "--format", "yolo", "--labels-dir",
          "ROOT/SegmentationClassAug")
PLAN = ("datasets.plan", "ROOT", "--run-dir", "RUN/new", "--val-share", "0.25")
MAKE_LIST = ("datasets.command", "make-list", "ROOT", "--num-workers", 0, "--output",
             "RUN/list.txt")
DEEPLAB = ("deeplab", "-c", "RUN/deeplab.yaml")
DEEPLAB_TRAIN = (*DEEPLAB, "train", "EXP.OUTPUT_DIR=RUN/new")
DEEPLAB_TEST = (*DEEPLAB, "test", "EXP.OUTPUT_DIR=RUN/new")
DEEPLAB_CRF = (*DEEPLAB, "crf", "--stored-logits", "--scores", "RUN/new.json")

CASES: dict[str, Case] = {}


def add(name: str, spoil: Spoil, command: tuple[Any, ...], words: str, status: int = 1) -> None:
    name = name[:70]
    assert name not in CASES, name
    CASES[name] = Case(spoil, command, words, status)


# Ways to spoil something

def nothing(_: Callable[[str], Path]) -> None:
    pass


def write(name: str, content: str | bytes) -> Spoil:
    def spoil(place: Callable[[str], Path]) -> None:
        path = place(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else
                         content.encode("utf-8", "surrogateescape"))
    return spoil


def append(line: str, name: str = LIST) -> Spoil:
    return lambda place: write(name, place(name).read_text() + line + "\n")(place)


def cut(name: str, size: int) -> Spoil:
    """Without the last `size` bytes."""
    return lambda place: write(name, place(name).read_bytes()[:-size])(place)


def remove(*names: str) -> Spoil:
    """Files, or folders with all that is in them."""
    def spoil(place: Callable[[str], Path]) -> None:
        for name in names:
            path = place(name)
            for below in sorted(path.rglob("*"), reverse=True):
                below.rmdir() if below.is_dir() else below.unlink()
            path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)
    return spoil


def both(*spoils: Spoil) -> Spoil:
    def spoil(place: Callable[[str], Path]) -> None:
        for one in spoils:
            one(place)
    return spoil


def picture(name: str, array: np.ndarray) -> Spoil:
    def spoil(place: Callable[[str], Path]) -> None:
        place(name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(place(name))
    return spoil


def label(name: str, number: int, size: tuple[int, int] | None = None) -> Spoil:
    """A label PNG full of one number, by default of the size of the first image."""
    def spoil(place: Callable[[str], Path]) -> None:
        with Image.open(place(IMAGE)) as image:
            height, width = size or image.size[::-1]
        place(name).parent.mkdir(parents=True, exist_ok=True)
        save_label(place(name), np.full((height, width), number))
    return spoil


def copy(source: str, target: str) -> Spoil:
    return lambda place: write(target, place(source).read_bytes())(place)


def saved(content: Any, name: str = OWN) -> Spoil:
    return lambda place: torch.save(content() if callable(content) else content, place(name))


def changed(source: str, target: str, change: Callable[[dict[str, Any]], Any]) -> Spoil:
    """A checkpoint with something changed in it."""
    def spoil(place: Callable[[str], Path]) -> None:
        content = torch.load(place(source), weights_only=True)
        change(content)
        torch.save(content, place(target))
    return spoil


def with_annotations(text: str) -> Spoil:
    """A list without labels, and the annotation of its first image."""
    def spoil(place: Callable[[str], Path]) -> None:
        lines = place(LIST).read_text().splitlines()
        place(LIST).write_text("".join(f"{line.split()[0]}\n" for line in lines))
        write(XML, text)(place)
    return spoil


def zipped(name: str, member: str) -> Spoil:
    def spoil(place: Callable[[str], Path]) -> None:
        with zipfile.ZipFile(place(name), "w") as archive:
            archive.writestr(member, "hello")
    return spoil


def png(width: int, height: int) -> bytes:
    """A palette PNG that claims a size, with right checksums and a few bytes of pixels."""
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">L", len(body)) + kind + body + struct.pack(
            ">L", zlib.crc32(kind + body))

    header = struct.pack(">LL5B", width, height, 8, 3, 0, 0, 0)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"PLTE", bytes(768))
            + chunk(b"IDAT", zlib.compress(bytes(40))) + chunk(b"IEND", b""))


def encoded(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((40, 30), 60).convert("RGB").save(buffer, kind)
    return buffer.getvalue()


def pipe(path: Path) -> None:
    os.mkfifo(path)


def listener(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        here = os.getcwd()
        os.chdir(path.parent)  # the path of a socket may have 107 bytes
        server.bind(path.name)
        os.chdir(here)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def folder(path: Path) -> None:
    path.mkdir()


def nowhere(path: Path) -> None:
    path.symlink_to(path.parent / "gone")


IRREGULAR = (pipe, listener, device, folder, nowhere)


def irregular(name: str, make: Callable[[Path], None]) -> Spoil:
    def spoil(place: Callable[[str], Path]) -> None:
        place(name).unlink(missing_ok=True)
        make(place(name))
    return spoil


# Images

AVIF = b"\0\0\0\x20ftypavif\0\0\0\0avifmif1miafMA1B"
IMAGES = {
    "missing": (remove(IMAGE), FIRST), "truncated": (cut(IMAGE, 400), "unreadable"),
    "of text": (write(IMAGE, "<html>404</html>"), "unreadable"),
    "empty": (write(IMAGE, b""), "unreadable"),
    "of zeros": (write(IMAGE, bytes(4000)), "unreadable"),
    "JPEG's first bytes": (write(IMAGE, b"\xff\xd8\xff\xe0"), "unreadable"),
    "AVIF, whole header": (write(IMAGE, AVIF + bytes(300)), "unreadable JPEG or PNG"),
    "AVIF, cut": (write(IMAGE, AVIF[:20]), "unreadable JPEG or PNG"),
    "DDS": (write(IMAGE, b"DDS |\0\0\0\x07\x10\x02\0" + bytes(200)), "unreadable JPEG or PNG"),
    "DDS, cut": (write(IMAGE, b"DDS |\0"), "unreadable JPEG or PNG"),
    "BLP": (write(IMAGE, b"BLP2" + bytes(200)), "unreadable JPEG or PNG"),
    "BLP1, of JPEG": (write(IMAGE, b"BLP1" + bytes(8) + b"\xff" * 90), "unreadable JPEG or PNG"),
    "GIF": (write(IMAGE, encoded("GIF")), "unreadable JPEG or PNG"),
    "HEIC in name of JPEG": (write(IMAGE, b"\0\0\0\x1cftypheic" + bytes(99)), "unreadable JPEG"),
    "MOV in name of JPEG": (write(IMAGE, b"\0\0\0\x14ftypqt  " + bytes(99)), "unreadable JPEG"),
    "PostScript": (write(IMAGE, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
                   "unreadable JPEG or PNG"),
    "PNG cut": (write(IMAGE, encoded("PNG")[:60]), "unreadable"),
    "TIFF cut": (write(IMAGE, encoded("TIFF")[:90]), "unreadable"),
    "WebP cut": (write(IMAGE, encoded("WEBP")[:60]), "unreadable"),
    "BMP cut": (write(IMAGE, encoded("BMP")[:40]), "unreadable"),
    "1000000x1000000": (write(IMAGE, png(1_000_000, 1_000_000)), "unreadable"),
    "20000x20000": (write(IMAGE, png(20_000, 20_000)), "unreadable"),
    "0x0": (write(IMAGE, png(0, 0)), "unreadable"),
}
for _name, (_spoil, _words) in IMAGES.items():
    add(f"image: {_name}", _spoil, TRAIN, f"{FIRST} {_words}")
add("image: two of one name", copy("ROOT/JPEGImages/val_000000.jpg",
                                   "ROOT/JPEGImages/val_000000.png"), TRAIN, "val_000000")
add("image: truncated, in the plan's list", remove(IMAGE), PLAN, f"train_aug.txt {FIRST}")
for _suffix in ("HEIC", "MOV", "cr2"):  # HEIC can be read where its package is installed
    add(f"image: {_suffix} alone, named and counted", both(
        remove("ROOT/JPEGImages"), write(f"ROOT/JPEGImages/IMG_1.{_suffix}", b"\0\0\0\x1cftyp"),
        write("ROOT/JPEGImages/IMG_2.gif", b"GIF89a")), TRAIN,
        "JPEGImages" if _suffix == "HEIC" else f"2 files IMG_1.{_suffix}: format not supported")

# What is no regular file

for _place, _command in ((IMAGE, TRAIN), (MASK, SCORE_MAPS), (SALIENCY, SCORE_MAPS),
                         (MAP, SCORE_MAPS), (LIST, TRAIN), (CLASSES, TRAIN), (XML, TRAIN),
                         ("TMP/own.pth", (*MAPS, "--checkpoint", OWN))):
    for _make in IRREGULAR:
        if (_place, _make) == (CLASSES, nowhere):
            continue  # a link to nothing is nothing
        add(f"no file: {_place.partition('/')[2]} as {_make.__name__}",
            both(with_annotations("") if _place == XML else nothing, irregular(_place, _make)),
            _command, _place.rpartition("/")[2].partition(".")[0])

# Lists, and their names

LINES = {
    "val_000000 7": "7 3 classes", "val_000000 -1": "-1", "val_000000 1.5": "1.5",
    "val_000000 1.0": "1.0", "val_000000 nan": "nan", "val_000000 unicorn": "unicorn",
    f"{FIRST} 1": f"{FIRST} twice", "nobody 1": "names no image",
    "../JPEGImages/../outside 1": "", "ROOT/outside.jpg 1": "", "../outside 1": "",
    "val_000000 1\0": "", "val_000000\0 1": "", "\0": "", "- 1": "", "val_000000 - 1": "",
    "val_000000 99999999999999999999999999": "", "val_000000 " + "9" * 5000: "",
    "val_000000 " + "1 " * 40_000: "", "x" * 600_000: "has 600"}
for _line, _words in LINES.items():
    add(f"line: {_line[:40]!r}", both(
        copy("ROOT/JPEGImages/val_000000.jpg", "ROOT/outside.jpg"),
        lambda place, line=_line: append(line.replace("ROOT", str(place("ROOT"))))(place)),
        TRAIN, f"train_aug.txt line 9 {_words}")
add("line: without labels", both(remove("ROOT/Annotations"), append("val_000000")), TRAIN,
    "val_000000 no image-level labels")
add("list: empty", write(LIST, "\n \n"), TRAIN, "train_aug.txt")
add("list: no text", write(LIST, b"\xff\xfe\x00\x01" * 9), TRAIN, "train_aug.txt UTF-8")
add("list: empty, for the plan", write(LIST, ""), PLAN, "train_aug.txt")
add("list: empty, for the evaluation", write("TMP/l.txt", ""), (*SCORE_MAPS, "--list", "TMP/l.txt"),
    "l.txt")
LIST_NAMES = ("nothing", "x" * 5000, "a/" * 2000, "../../x", "..", ".", "", "a\0b", "\0",
              "/dev/zero", "/dev/tty", "~", "*", "\ud800")
for _name in LIST_NAMES:
    add(f"name of a list: {_name[:20]!r}", nothing, (*TRAIN, "--list", _name), "list")
add("name of a list: of validation", nothing, (*TRAIN, "--val-list", "nothing"),
    "list nothing train_aug")
add("name of a list: for DeepLab", nothing, (*DEEPLAB_TRAIN, "SPLIT.TRAIN=" + "x" * 5000), "list")

# Annotations and classes

ANNOTATIONS = {
    "none": ("", "malformed"), "cut": ("<annotation><object><name>cat</na", "malformed"),
    "unknown class": ("<annotation><object><name>dragon</name></object></annotation>",
                      "unknown dragon"),
    "entity bomb": ('<!DOCTYPE a [<!ENTITY l0 "lol">' + "".join(
        f'<!ENTITY l{i} "{f"&l{i - 1};" * 10}">' for i in range(1, 10))
        + "]><annotation>&l9;</annotation>", "document type"),
    "external entity": ('<!DOCTYPE a [<!ENTITY f SYSTEM "file:///etc/hostname">]><annotation>'
                        "<object><name>&f;</name></object></annotation>", "document type"),
    "document type": ("<!DOCTYPE a><annotation/>", "document type"),
    "huge": ("<annotation>" + " " * (2 << 20) + "</annotation>", "large"),
    "deep and open": ("<annotation>" + "<a>" * 200_000, ""),
    "long name": (f"<annotation><object><name>{'x' * 900_000}</name></object></annotation>", ""),
    "no name": ("<annotation><object><name/></object></annotation>", ""),
    "name of two lines": ("<annotation><object><name>c\nt</name></object></annotation>", ""),
    "zero byte": ("\0", ""), "JSON": ("{}", ""),
    "odd encoding": ("<?xml version='1.0' encoding='utf-7'?><a/>\0", "")}
for _name, (_text, _words) in ANNOTATIONS.items():
    add(f"annotation: {_name}", with_annotations(_text), TRAIN, f"{FIRST}.xml {_words}")
add("annotation: missing", both(with_annotations(""), remove(XML)), TRAIN, f"{FIRST}.xml")
add("annotation: unknown class, for make-list", write(XML, ANNOTATIONS["unknown class"][0]),
    (*MAKE_LIST, "--from-xml"), f"{FIRST}.xml dragon")
for _name, _text in {
        "twice": "cat\ndog\ncat\n", "none": "\n \n", "300": "".join(f"{i}\n" for i in range(300)),
        "255": "".join(f"{i}\n" for i in range(255)), "long": "c" * 500, "zero byte": "ca\0t\n",
        "escape": "cat\x1bdog\n", "100,000 times": "cat\n" * 100_000,
        "no text": b"\xff\xfe" * 9}.items():
    add(f"classes: {_name}", write(CLASSES, _text), TRAIN, "classes.txt")


def reorder(place: Callable[[str], Path]) -> None:
    place(CLASSES).write_text("\n".join(reversed(place(CLASSES).read_text().split())) + "\n")


add("classes: another order, maps", reorder, MAPS, "another order class 0")
add("classes: another order, labels", reorder, LABELS, "another order class 0")
add("classes: another order, training", reorder, GO_ON, "classes")
add("classes: another order, DeepLab", reorder, (*DEEPLAB_TEST, "-m", FINAL),
    "trained for 3 classes")
add("classes: one more", append("horse", CLASSES), LABELS, "has 3 classes, the data set has 4")
add("data root: none", remove("ROOT"), TRAIN, "no such folder")
add("data root: empty", both(remove("ROOT"), lambda place: place("ROOT").mkdir()), TRAIN,
    "no images own_data.md")
add("data root: no images", both(remove("ROOT/JPEGImages"),
                                 lambda place: place("ROOT/JPEGImages").mkdir()),
    TRAIN, "JPEGImages no images")
add("data root: a file", both(remove("ROOT"), write("ROOT", "x")), TRAIN, "is a file")

# Masks, saliency maps, localization maps, labels

COMPANIONS: dict[str, Callable[[str], Spoil]] = {
    "of another size": lambda name: picture(name, np.zeros((9, 11), np.uint8)),
    "missing": remove, "in colour": lambda name: picture(name, np.zeros((48, 48, 3), np.uint8)),
    "of 16 bits": lambda name: picture(name, np.zeros((48, 48), np.uint16)),
    "cut": lambda name: cut(name, 40), "of text": lambda name: write(name, "no PNG"),
    "1000000x1000000": lambda name: write(name, png(1_000_000, 1_000_000)),
    "0x0": lambda name: write(name, png(0, 0))}
for _name, _of in COMPANIONS.items():
    _said = f"{FIRST}.png" + (" 11x9" if _name == "of another size" else "")
    add(f"mask: {_name}", _of(MASK), SCORE_MAPS, _said)
    add(f"mask: {_name}, in validation", _of(MASK), (*TRAIN, "--val-list", "train"), _said)
    add(f"mask: {_name}, in training DeepLab", _of(MASK), DEEPLAB_TRAIN, _said)
    add(f"saliency: {_name}", _of(SALIENCY), SCORE_MAPS, _said)
    if _name != "of another size":  # they have the network's
        add(f"map: {_name}", _of(MAP), REFINE, f"{FIRST}.png")
for _number in (4, 100, 254):
    add(f"mask: label {_number}", label(MASK, _number), SCORE_MAPS,
        f"{FIRST}.png label {_number}")
    add(f"mask: label {_number}, for DeepLab", label(MASK, _number), DEEPLAB_TRAIN,
        f"{FIRST} label {_number} 3 classes")
    add(f"mask: label {_number}, for make-list", label(MASK, _number),
        (*MAKE_LIST, "--from-masks"), f"{FIRST}.png {_number}")
    add(f"labels: {_number}", both(label(f"TMP/labels/{FIRST}.png", _number),
                                   write("TMP/l.txt", f"{FIRST} 1\n")),
        (*SCORE, "--list", "TMP/l.txt"), f"labels/{FIRST}.png label {_number}")
    add(f"labels: {_number}, to export", label(MASK, _number), EXPORT, f"{FIRST}.png {_number}")
add("labels: none", nothing, SCORE, "labels no such folder")
add("labels: none to export", nothing, (*EXPORT, "--labels-dir", "TMP/none"), "no such folder")
add("labels: of another size, to export", label(MASK, 0, (9, 11)), EXPORT, f"{FIRST}.png 11x9")
add("map: a saliency map", copy(SALIENCY, MAP), REFINE, f"{FIRST}.png a PNG, but not")
add("map: a label", label(MAP, 1), REFINE, f"{FIRST}.png a PNG, but not")
add("maps: none", remove("RUN/localization_maps"), REFINE, "localization_maps: no such folder")
add("saliency: none", remove("ROOT/saliency_map"), LABELS, "saliency_map --background")
add("masks: none", remove("ROOT/SegmentationClassAug"), SCORE_MAPS,
    "SegmentationClassAug --mask-dir")

# Checkpoints: ours with one part changed

WITH_OWN = (*MAPS, "--checkpoint", OWN)
BIAS = "extra_conv4.bias"
DAMAGE: dict[str, tuple[str, Any]] = {
    "nan width": ("network", {"width": float("nan")}), "huge width": ("network", {"width": 1e6}),
    "width of text": ("network", {"width": "wide"}), "no kind": ("network", {"network": "other"}),
    "kind of a list": ("network", {"network": ["classifier"]}),
    "no classes at all": ("network", {"num_classes": None}),
    "more classes than names": ("network", {"num_classes": 200}),
    "bool for a number": ("network", {"num_classes": True}),
    "unknown mode": ("network", {"drs": "sometimes"}), "delta": ("network", {"delta": 7}),
    "norm of text": ("network", {"batch_norm": "yes"}),
    "strange key": ("network", {"extra": 1}), "number as key": ("network", {3: 1}),
    "classes of numbers": ("classes", [1, 2, 3]), "classes of text": ("classes", "abc"),
    "options of numbers": ("made_from", 7), "options of a list": ("made_from", [1]),
    "image size of text": ("made_from", {"options": {"image_size": "wide"}}),
    "huge image size": ("made_from", {"options": {"image_size": 10**12}}),
    "nan weights": ("weights", lambda: torch.full((3,), float("nan"))),
    "infinite weights": ("weights", lambda: torch.full((3,), float("inf"))),
    "sparse": ("weights", lambda: torch.ones(3).to_sparse()),
    "quantized": ("weights",
                  lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)),
    "meta": ("weights", lambda: torch.ones(3, device="meta")),
    "stride 0": ("weights", lambda: torch.ones(1).expand(3)),
    "another shape": ("weights", lambda: torch.ones(4)), "a number": ("weights", lambda: 3.0),
}


def damaged(part: str, value: Any) -> Spoil:
    def change(content: dict[str, Any]) -> None:
        if part == "network":
            content["network"] |= value
        elif part == "weights":
            content["model"][BIAS] = value()
        else:
            content[part] = value
    return changed(LAST, OWN, change)


def without(part: str, key: str | None = None) -> Spoil:
    return changed(LAST, OWN, lambda content: content.pop(part) if key is None
                   else content[part].pop(key))


for _name, (_part, _value) in DAMAGE.items():
    add(f"checkpoint: {_name}", damaged(_part, _value), WITH_OWN, "own.pth")
add("checkpoint: num_classes missing", without("network", "num_classes"), WITH_OWN, "own.pth None")
add("checkpoint: kind missing", without("network", "network"), WITH_OWN, "own.pth what network")
add("checkpoint: no network", without("network"), WITH_OWN, "own.pth damaged")
add("checkpoint: no classes", without("classes"), WITH_OWN, "own.pth damaged")
add("checkpoint: a weight missing", without("model", BIAS), WITH_OWN, f"own.pth 1 missing {BIAS}")

# Checkpoints of others, and none

for _name, _bytes in {"empty": b"", "text": b"no checkpoint\n" * 50,
                      "a PNG": b"\x89PNG\r\n\x1a\n" + bytes(99)}.items():
    add(f"checkpoint: {_name}", write(OWN, _bytes), WITH_OWN, "own.pth: refused")
for _size in (100, 40_000):
    add(f"checkpoint: cut by {_size}", both(copy(LAST, OWN), cut(OWN, _size)), WITH_OWN,
        "own.pth: refused")
add("checkpoint: another ZIP", zipped(OWN, "hello.txt"), WITH_OWN, "own.pth: refused")
add("checkpoint: none", nothing, WITH_OWN, "own.pth: no such file")
for _name, _content, _words in (
        ("a list", [1, 2], ""), ("a tensor", torch.ones(2), ""),
        ("no dictionary", {"model": 3}, ""), ("a number as weight", {"model": {"a": 3}}, ""),
        ("nothing in it", {"model": {}}, ""),
        ("of a ResNet", {"conv1.weight": torch.ones(2, 2)}, "another architecture conv1.weight"),
        ("of DeepLab", {"layer1.conv1.conv.weight": torch.ones(3)}, "holds a deeplab network"),
        ("of ours by its format", {"format": FORMAT, "model": {"a": torch.ones(1)}}, ""),
        ("flat weights", {"features.28.weight": torch.ones(()),
                          "extra_conv4.weight": torch.ones(2)}, "")):
    add(f"checkpoint: {_name}", saved(_content), WITH_OWN, f"own.pth {_words}")
    add(f"initial weights: {_name}", saved(_content), (*TRAIN, "--init", OWN), "own.pth")
add("initial weights: none", nothing, (*TRAIN, "--init", OWN), "own.pth")
add("initial weights: of another width", nothing, (*TRAIN, "--init", LAST, "--width", "0.125"),
    "--init features.0.weight")
add("checkpoint: DeepLab's for maps", nothing,
    (*MAPS, "--checkpoint", FINAL), "holds a deeplab network")
add("checkpoint: a classifier for DeepLab", nothing, (*DEEPLAB_TEST, "-m", LAST),
    "last.pth holds a classifier network")
for _option, _value in (("--network", "refine"), ("--drs", "none"), ("--delta", "0.3")):
    add(f"checkpoint: contradicts {_option}", nothing,
        (*MAPS, "--checkpoint", LAST, _option, _value), f"{_option} {_value} contradicts")


def vgg_of_stride_32() -> dict[str, Any]:
    from models import build

    model = build({"network": "refine", "num_classes": 3, "backbone": "vgg11_bn",
                   "output_stride": 32})
    return {"format": FORMAT, "network": model.config, "classes": ["cat", "dog", "bird"],
            "model": model.state_dict()}


_vgg = both(write(CLASSES, "cat\ndog\nbird\n"), saved(vgg_of_stride_32))
for _command in (MAPS, LABELS):
    add(f"scales: too small for a stride of 32, {_command[0]}", _vgg,
        (*_command, "--checkpoint", OWN, "--image-size", 64, "--scales", "1", "0.25"),
        "--scales 0.25 of 64 pixels is 16 32")

# A training that is to go on, and what it finds

for _part in ("optimizer", "scheduler", "history", "best_score", "made_from"):
    for _value in ("a text", 7, None, {"a": 1}, "gone"):
        if (_part, _value) in (("best_score", None), ("best_score", 7)):
            continue

        def _change(content: dict[str, Any], part: str = _part, value: Any = _value) -> None:
            content.pop(part) if value == "gone" else content.update({part: value})

        add(f"last.pth: {_part} is {_value}", changed(LAST, LAST, _change), GO_ON,
            "last.pth --overwrite")
add("last.pth: cut", cut(LAST, 1000), GO_ON, "last.pth")
add("last.pth: of another network", copy("RUN/refine/last.pth", LAST), GO_ON, "last.pth")
for _text in ("", "[1]", "{}", "{", "null", "7", '"a"', "[" * 100_000,
              '{"stage": 1, "options": [], "classes": {}, "inputs": 3, "images": {"a": 1}, '
              '"made": {}, "places": {}}'):
    add(f"record: {_text[:10]!r}", write("RUN/localization_maps/provenance.json", _text),
        ("make_localization_maps", *WHERE, *MACHINE), "provenance.json")
    add(f"record of the maps for the refinement: {_text[:10]!r}",
        write("RUN/localization_maps/provenance.json", _text), REFINE, "provenance.json")
add("PNGs of unknown origin", picture(f"RUN/new/{FIRST}.png", np.zeros((4, 4), np.uint8)), MAPS,
    "new holds 1 PNGs of unknown origin")

# Stored logits


def logits(array: Any) -> Spoil:
    def spoil(place: Callable[[str], Path]) -> None:
        with np.load(place(f"{LOGITS}/{FIRST}.npz")) as stored:
            before = stored["logits"]
        np.savez_compressed(place(f"{LOGITS}/{FIRST}.npz"), logits=array(before))
    return spoil


for _name, _spoil in {
        "empty": write(f"{LOGITS}/{FIRST}.npz", b""), "cut": cut(f"{LOGITS}/{FIRST}.npz", 90),
        "text": write(f"{LOGITS}/{FIRST}.npz", "no logits"),
        "gone": remove(f"{LOGITS}/{FIRST}.npz"),
        "of a class less": logits(lambda a: a[1:]), "flat": logits(lambda a: a[0]),
        "of no size": logits(lambda a: a[:, :0]), "nan": logits(lambda a: a * np.nan),
        "infinite": logits(lambda a: np.full_like(a, np.inf)),
        "whole numbers": logits(lambda a: a.astype(np.int32)),
        "text in an array": logits(lambda a: np.array(["a"])),
        "objects": logits(lambda a: np.array([{}], dtype=object))}.items():
    add(f"logits: {_name}", _spoil, DEEPLAB_CRF, f"{FIRST}.npz --save-logits")
add("logits: none", remove(LOGITS), DEEPLAB_CRF, "logits --save-logits")
add("logits: no record", write(f"{LOGITS}/provenance.json", "[]"), DEEPLAB_CRF, "provenance.json")

# Options: values that can never be meant

OPTIONS: Iterable[tuple[tuple[Any, ...], str, str]] = (
    *((TRAIN, option, value) for option, value in (
        ("--delta", "0"), ("--delta", "1.1"), ("--drs", "fix"), ("--lr", "0"), ("--lr", "nan"),
        ("--lr", "1e300"), ("--epochs", "0"), ("--epochs", "1" * 40), ("--batch-size", "0"),
        ("--batch-size", "10000000000"), ("--num-workers", "-1"), ("--num-workers", "100000"),
        ("--image-size", "7"), ("--image-size", "100000"), ("--width", "0"), ("--width", "inf"),
        ("--width", "1e6"), ("--seed", "-1"), ("--seed", "4294967296"), ("--resize", "16"),
        ("--weight-decay", "1e300"), ("--weight-decay", "-1"), ("--device", "tpu"),
        ("--amp", "yes"), ("--milestones", "0"), ("--output-stride", "7"))),
    *((LABELS, option, value) for option, value in (
        ("--alpha", "1.5"), ("--alpha", "-0.1"), ("--alpha", "nan"), ("--alpha", "much"),
        ("--scales", "inf"), ("--scales", "0"), ("--scales", "17"), ("--background-score", "0"),
        ("--shard", "3/2"))),
    *((SCORE_MAPS, option, value) for option, value in (
        ("--alphas", "2"), ("--name", "../../x"), ("--name", "x" * 5000), ("--name", ".x"))),
    (PLAN, "--val-share", "1.5"), (PLAN, "--seed", "-1"), (EXPORT, "--format", "bmp"))
for _command, _option, _value in OPTIONS:
    add(f"{_command[0]} {_option} {_value[:20]}", nothing, (*_command, _option, _value), _option, 2)

# Options against the data, the machine and each other

for _name, _command, _words in (
        ("more than the images", (*TRAIN, "--batch-size", "9"), "--batch-size 9"),
        ("fp16 on the CPU", (*TRAIN, "--amp", "fp16"), "--amp fp16"),
        ("no saliency folder", (*TRAIN, "--val-list", "train", "--saliency-dir", "TMP/none"),
         "none --saliency-dir"),
        ("no mask folder", (*SCORE_MAPS, "--mask-dir", "TMP/none"), "none --mask-dir"),
        ("scales too small", (*LABELS, "--scales", "0.1"), "--scales 0.1"),
        ("scales too small, maps", (*MAPS, "--scales", "1", "1e-9"), "--scales 1e-09"),
        ("scales too large", (*MAPS, "--image-size", "8192", "--scales", "16"), "--scales 16"),
        ("shares of a network that is none", (*TRAIN, "--backbone", "resnet19"),
         "--width and --batch-norm are vgg16's"),
        ("output stride of the paper's", (*TRAIN, "--output-stride", "16"), "--output-stride 16"),
        ("import of nothing from CVAT", ("export_labels", "--data-root", "ROOT", *NEW,
                                         "--import-cvat", "TMP/none"), "--import-cvat not there"),
        ("prediction of nothing", (*DEEPLAB, "predict", "--input", "TMP/none", "--output-dir",
                                   "RUN/new"), "none")):
    add(f"options: {_name}", nothing, _command, _words)
add("options: a class that CVAT cannot hold", write(CLASSES, "ignored\nb\nc\n"),
    (*EXPORT, "--format", "cvat"), "--format cvat ignored")

# Folders that cannot be written. A file stands where a folder is wanted, because a test that runs
# as root may write anywhere.

for _command in (TRAIN, (*MAPS, "--checkpoint", LAST), SCORE_MAPS):
    for _option, _other in (("--output-dir", "--run-dir"), ("--run-dir", "--output-dir")):
        add(f"{_command[0]}: {_option} below a file", write("TMP/file", "in the way"),
            (*_command, _option, "TMP/file/x", _other, "TMP/other"), f"{_option}: cannot write to")
add("--save-maps below a file", write("TMP/file", ""), (*LABELS, "--save-maps", "TMP/file/maps"),
    "--save-maps")
