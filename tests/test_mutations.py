"""Thousands of damaged files of every kind that is read: a result or one line, and soon.

Bytes are changed, cut out, doubled, exchanged for others of the format's own; where checksums would
catch that (PNG, ZIP), they are put right again. `--mutations N` tries N times as many.
"""

import io
import json
import random
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import soon
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "DeepLab-V2-PyTorch"))

from datasets import documents, lists, sources, tables
from datasets.images import image_size, read_image
from datasets.layout import DataRoot
from datasets.pictures import find_pictures
from datasets.source import Source
from labelling.labels import read_label, save_label
from labelling.maps import load_maps, save_maps
from libs.config import HERE as DEEPLAB
from libs.config import load_config
from libs.inference import LogitStore
from models.classifier import Classifier
from reporting.run import read_scores, score_rows, score_table
from utils import checkpoint, provenance
from utils.files import UserError

CLASSES = {"cat": 0, "dog": 1, "teddy bear": 2}
PIXELS = np.random.default_rng(0).integers(0, 255, (12, 20, 3)).astype(np.uint8)
SIGNS = {".xml": b"<|>|&amp;|&#0;|<!DOCTYPE a>|<![CDATA[|</object>|<object>|/|\"|'|<?x?>|&x;",
         ".txt": b"\n| |,|\t|../|/|-1|99|cat|\0|\r|\xff|\xc3\xa9|1.5|a.jpg|\x1b|\xe2\x80\xa8",
         ".csv": b"\"|,|;|\n|\t|\"\"|cat|a.jpg|[|{\"choices\": [1]}|\0|\xff|null|../|image",
         ".json": b"{|}|[|]|,|:|\"|null|1e999|-1|\\ud800|\\|NaN|99999999999999999999|\0|true|{}|[]",
         ".yaml": b":|[|]|{|}|'|*a|&a |!!|\t|\n|? |- |---\n|#|\\|\0|1e999|null|..|/|<<: |@"}
Mutate = Callable[[bytes, random.Random], bytes]


def changed(content: bytes, rng: random.Random, suffix: str = "", reach: int | None = None
            ) -> bytes:
    """One to four places changed, cut out, doubled or written over, among the first `reach`."""
    data, signs = bytearray(content), SIGNS.get(suffix, b"\0|\xff|\x7f|\x80").split(b"|")
    for _ in range(rng.randint(1, 4)):
        at, length = rng.randrange(min(len(data), reach or len(data)) or 1), rng.randint(0, 12)
        data[at:at + length] = rng.choice((
            b"", bytes(data[at:at + 3 * length]), rng.choice(signs), rng.randbytes(length),
            struct.pack(">I", rng.choice((0, 1, 255, 65536, 2**31 - 1, 2**32 - 1)))))
        if not rng.randrange(8):
            del data[rng.randrange(len(data) + 1):]
        data = data or bytearray(b"x")
    return bytes(data)


def png_chunks(content: bytes, rng: random.Random) -> bytes:
    """A PNG with chunks damaged, dropped, doubled or exchanged, and checksums that are right."""
    at, chunks = 8, []
    while at + 8 <= len(content):
        length, kind = struct.unpack(">I4s", content[at:at + 8])
        chunks.append((kind, content[at + 8:at + 8 + length]))
        at += 12 + length
    for _ in range(rng.randint(1, 3)):
        i, what = rng.randrange(len(chunks)), rng.randrange(6)
        kind, body = chunks[i]
        if what == 0 and len(chunks) > 1:
            del chunks[i]
        elif what == 1:
            chunks.insert(rng.randrange(len(chunks)), (kind, body))
        elif what == 2:
            chunks[i] = (rng.choice((b"IHDR", b"PLTE", b"tRNS", b"tEXt", b"zTXt", b"iTXt", b"iCCP",
                                     b"eXIf", b"IDAT", b"acTL", b"fcTL")), body)
        elif kind == b"IHDR" and what == 3:  # no sizes: those of a bomb are tried elsewhere
            chunks[i] = (kind, body[:8] + rng.randbytes(5))
        else:
            chunks[i] = (kind, body[:8] + changed(body[8:], rng) if kind == b"IHDR"
                         else changed(body, rng))
    return content[:8] + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks)


def zip_members(content: bytes, rng: random.Random) -> bytes:
    """A ZIP with a member damaged (mostly at its beginning) or dropped, checksums right."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w") as new:
        names = old.namelist()
        first = next((name for name in names if name.endswith(".pkl")), names[0])
        target = first if rng.randrange(4) else rng.choice(names)
        drop = not rng.randrange(12)
        for name in names:
            data = old.read(name)
            if name == target:
                if drop:
                    continue
                data = changed(data, rng, reach=rng.choice((64, 130, None)))
            new.writestr(name, data)
    return buffer.getvalue()


def image_bytes(kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, kind, **options)
    return buffer.getvalue()


def exif_bytes() -> bytes:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E], exif[0x011A] = 6, "a photo", 72.0
    return image_bytes("JPEG", exif=exif)


def file_bytes(write: Callable[[Path], object], path: Path) -> bytes:
    write(path)
    return path.read_bytes()


class Kinds:
    """Name -> the whole file's name and bytes, what reads it, and how it is damaged."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        root = folder / "root"
        (root / "JPEGImages").mkdir(parents=True)
        for name in ("a", "b c"):
            (root / "JPEGImages" / f"{name}.jpg").write_bytes(image_bytes("JPEG"))
        (root / "classes.txt").write_text("\n".join(CLASSES))
        self.pictures = find_pictures(root / "JPEGImages")
        self.root = root
        (folder / "run" / "scores").mkdir(parents=True)

    def table(self) -> dict[str, tuple[str, bytes, list[Callable], Mutate]]:
        here = self.folder
        label = file_bytes(lambda path: save_label(path, PIXELS[..., 0] % 4), here / "x.png")
        maps = file_bytes(lambda path: save_maps(path, PIXELS.transpose(2, 0, 1)[:2], [0, 2]),
                          here / "x.png")
        own = file_bytes(lambda path: checkpoint.save(path, {
            "format": checkpoint.FORMAT, "classes": list(CLASSES), "model": self.network(),
            "network": {"network": "classifier", "num_classes": 3, "width": 0.0625},
            "made_from": self.record().packed(), "epoch": 1, "history": [{"loss": 1.0}]}),
            here / "x.pth")
        npz = file_bytes(lambda path: np.savez_compressed(
            path, logits=np.zeros((4, 5, 6), np.float16)), here / "x.npz")
        text = {suffix: (lambda data, rng, s=suffix: changed(data, rng, s)) for suffix in SIGNS}
        coco = {"images": [{"id": 1, "file_name": "a.jpg", "width": 20, "height": 12}],
                "categories": [{"id": 3, "name": "cat"}],
                "annotations": [{"image_id": 1, "category_id": 3, "bbox": [1, 2, 3, 4],
                                 "segmentation": [[1, 2, 3, 4, 5, 6]]}]}
        studio = [{"image": "/data/upload/1/0123abcd-a.jpg", "choice": {"choices": ["cat"]}},
                  {"data": {"image": "b c.jpg"}, "annotations": [{"result": [
                      {"type": "choices", "value": {"choices": ["dog"]}}]}]}]
        labelme = {"imagePath": "a.jpg", "flags": {"dog": True},
                   "shapes": [{"label": "cat", "points": [[1, 2], [3, 4]]}]}
        xml = (b"<annotation><filename>a.jpg</filename><object><name>cat</name><bndbox><xmin>1"
               b"</xmin></bndbox></object><object><name>teddy bear</name></object></annotation>")
        scores = {"miou": 0.5, "precision": 0.5, "recall": 0.5, "pixel_accuracy": 0.5,
                  "images": 2, "list": "train", "labels": ["background", *CLASSES],
                  "per_image": {"a": 0.5}, "iou": [0.5] * 4}
        return {
            "JPEG": ("a.jpg", exif_bytes(), [read_image, image_size], changed),
            "JPEG's header": ("a.jpg", exif_bytes(), [read_image, image_size],
                              lambda data, rng: changed(data, rng, reach=200)),
            "PNG": ("a.png", image_bytes("PNG"), [read_image, image_size], changed),
            "PNG's chunks": ("a.png", image_bytes("PNG", dpi=(72, 72)), [read_image], png_chunks),
            "label PNG": ("a.png", label, [read_label], png_chunks),
            "maps PNG": ("a.png", maps, [lambda path: load_maps(path, 3)], png_chunks),
            "XML": ("a.xml", xml, [lambda path: sources.annotated_classes(path, CLASSES)],
                    text[".xml"]),
            "list": ("a.txt", b"a 1 2\nb c.jpg, cat\n\nb c\tteddy bear\n# x\n", [
                lambda path: list(lists.read_list(path, self.pictures, CLASSES))], text[".txt"]),
            "classes": ("root/classes.txt", "\n".join(CLASSES).encode(),
                        [lambda _: DataRoot(self.root)], text[".txt"]),
            "table": ("a.csv", b"image,label\na.jpg,\"cat;dog\"\nb c.jpg,\"[\"\"cat\"\"]\"\n", [
                lambda path: tables.read_table(path, self.source())], text[".csv"]),
            "COCO": ("a.json", json.dumps(coco).encode(), [self.add_document], text[".json"]),
            "Label Studio": ("a.json", json.dumps(studio).encode(), [self.add_document],
                             text[".json"]),
            "LabelMe": ("a.json", json.dumps(labelme).encode(), [self.add_document],
                        text[".json"]),
            "our record": ("provenance.json", json.dumps(vars(self.record())).encode(), [
                lambda path: self.compared(provenance.read(path.parent))], text[".json"]),
            "our scores": ("run/scores/drs.json", json.dumps(scores).encode(), [
                lambda _: self.table_of(here / "run")], text[".json"]),
            "YAML": ("a.yaml", (DEEPLAB / "configs" / "demo.yaml").read_bytes(), [load_config],
                     text[".yaml"]),
            ".pth": ("a.pth", own, [self.rebuilt], changed),
            ".pth's members": ("a.pth", own, [self.rebuilt], zip_members),
            ".npz": ("a.npz", npz, [self.replay], changed),
            ".npz's members": ("a.npz", npz, [self.replay], zip_members)}

    @staticmethod
    def network() -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        return Classifier(3, width=0.0625).state_dict()

    @staticmethod
    def record() -> provenance.Record:
        return provenance.Record("make", {"alpha": 0.2}, list(CLASSES), {"checkpoint": "ab"},
                                 {"a": {"labels": [1], "image": 9}}, {"when": "now"},
                                 {"images": "here"}, {"b": {"image": 3}})

    @staticmethod
    def rebuilt(path: Path) -> None:
        from models import build

        checkpoint.read(path).instantiate(build)

    def compared(self, record: provenance.Record) -> None:
        record.differences(self.record()), self.record().differences(record)
        record.list_differences(self.record()), record.digest(), record.digest(("a",))

    @staticmethod
    def table_of(run: Path) -> None:
        """The report leaves damaged scores out, with a warning."""
        scores = read_scores(run)
        if not scores:
            raise UserError("left out")
        score_table(scores), score_rows(scores, list(CLASSES))

    def source(self) -> Source:
        return Source("a", self.pictures, list(CLASSES))

    def add_document(self, path: Path) -> None:
        document = documents.read_document(path)
        if document.kind:
            documents.add_documents([document], path.parent, self.source())

    def replay(self, path: Path) -> None:
        store = LogitStore(path.parent, self.record())
        batch = {"id": ["a"], "size": [(12, 20)]}
        runtime = SimpleNamespace(main=False, device="cpu")
        list(store._replay([batch], runtime, "", "do it again"))


KINDS = ("JPEG", "JPEG's header", "PNG", "PNG's chunks", "label PNG", "maps PNG", "XML", "list",
         "classes", "table", "COCO", "Label Studio", "LabelMe", "our record", "our scores", "YAML",
         ".pth", ".pth's members", ".npz", ".npz's members")
EACH = 250  # times 20 kinds: 5,000


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_damage_ends_in_a_result_or_in_one_line(tmp_path, kind, request):
    table = Kinds(tmp_path).table()
    assert tuple(table) == KINDS
    name, whole, readers, mutate = table[kind]
    path, rng = tmp_path / name, random.Random(kind)
    path.write_bytes(whole)
    for read in readers:
        read(path)  # unharmed, it is read
    refused, count = 0, EACH * request.config.getoption("--mutations")
    for trial in range(count):
        path.write_bytes(mutate(whole, rng))
        for read in readers:
            try:
                with soon():
                    read(path)
            except UserError as error:
                refused += 1
                text = str(error)
                assert len(text.splitlines()) == 1 and len(text) < 2000, (trial, text)
            except Exception as error:
                kept = tmp_path / f"culprit{path.suffix}"
                kept.write_bytes(path.read_bytes())
                raise AssertionError(f"{kind}, trial {trial}, kept as {kept}: {error!r}"
                                     ) from error
    assert refused > count // 20
