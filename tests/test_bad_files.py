"""Images, lists, masks and annotations from strangers: an error of one line, and never a hang."""

import io
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from corpus import IRREGULAR
from helpers import soon
from PIL import Image

from datasets import pictures
from datasets.images import image_size, read_companion, read_image
from datasets.layout import DataRoot
from datasets.pictures import find_pictures
from labelling.labels import read_label, save_label
from labelling.maps import load_maps
from utils.files import UserError


def message(function: Callable, *args: object) -> str:
    """The one line with which `function` must fail, soon."""
    with soon(), pytest.raises(UserError) as caught:
        function(*args)
    text = str(caught.value)
    assert "\n" not in text and len(text) < 1000, text[:2000]
    return text


def photo(width: int = 20, height: int = 10) -> Image.Image:
    rng = np.random.default_rng(width)
    return Image.fromarray(rng.integers(0, 255, (height, width, 3)).astype(np.uint8))


def encoded(kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    photo().save(buffer, kind, **options)
    return buffer.getvalue()


# Images

def test_an_exif_field_of_a_wrong_type_is_no_reason_to_stop(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = bytearray(encoded("JPEG", exif=exif))
    # The tag of the picture's description, declared to be a rational: not to be written anew.
    entry = struct.pack(">HHL", 0x0112, 3, 1) + struct.pack(">HH", 6, 0)
    place = data.find(entry)
    if place < 0:
        entry = struct.pack("<HHL", 0x0112, 3, 1) + struct.pack("<HH", 6, 0)
        place = data.find(entry)
    assert place > 0
    upright, orientation = read_image(written(tmp_path, bytes(data)))
    assert (upright.size, orientation) == ((10, 20), 6)
    for kind in (2, 5, 7, 12, 99):  # text, rational, bytes, double, no type at all
        data[place + 2:place + 4] = struct.pack("<H" if entry[0] == 0x12 else ">H", kind)
        image, orientation = read_image(written(tmp_path, bytes(data)))
        assert (image.size, orientation) in (((20, 10), 1), ((10, 20), 6))


@pytest.mark.parametrize("tag", [0x010E, 0x011A, 0x0131, 0x8298, 0x9286])
def test_odd_values_of_exif_fields(tmp_path, tag):
    tried = 0
    for value in ("text", b"\x00\xff", 7, (1, 2, 3), 2.5):
        exif = Image.Exif()
        exif[0x0112], exif[tag] = 6, value
        data = b""
        with suppress(Exception):  # Pillow itself refuses to write some
            data = encoded("JPEG", exif=exif)
        if data:
            tried += 1
            assert read_image(written(tmp_path, data))[0].size == (10, 20)
    assert tried


def written(folder: Path, data: bytes, name: str = "a.jpg") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("kind", ["AVIF", "DDS", "BLP", "GIF", "TGA", "PCX", "JPEG2000", "ICNS"])
def test_only_documented_formats_are_decoded(tmp_path, kind):
    try:
        data = encoded(kind) if kind != "BLP" else b"BLP2" + bytes(200)
    except (OSError, KeyError, ValueError):
        pytest.skip(f"this Pillow cannot write {kind}")
    for damaged in (data, data[:len(data) // 2], data[:40] + bytes(60)):
        text = message(read_image, written(tmp_path, damaged))
        assert "a.jpg: unreadable image" in text and "JPEG or PNG or TIFF" in text


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "BMP"])
def test_damage_is_an_error_of_that_image(tmp_path, kind):
    whole = encoded(kind)
    rng = np.random.default_rng(0)
    refused = 0
    for trial in range(150):
        data = bytearray(whole)
        for place in rng.integers(0, len(data), rng.integers(1, 12)):
            data[place] = rng.integers(0, 256)
        path = written(tmp_path, bytes(data[:rng.integers(1, len(data) + 1)]) if trial % 2
                       else bytes(data))
        for function in (read_image, image_size):
            try:
                with soon():
                    function(path)
            except UserError as error:
                refused += 1
                assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
    assert refused > 20


@pytest.mark.parametrize("side", [20_000, 1_000_000])
def test_a_decompression_bomb_is_refused(tmp_path, side):
    data = bytearray(encoded("PNG"))
    data[16:24] = struct.pack(">LL", side, side)
    import zlib
    data[29:33] = struct.pack(">L", zlib.crc32(bytes(data[12:29])))
    path = written(tmp_path, bytes(data), "a.png")
    for function in (read_image, image_size, read_label):
        assert "a.png: unreadable" in message(function, path)
    assert "a.png" in message(load_maps, path, 3)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "BMP"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_the_size_is_that_of_the_upright_image(tmp_path, kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {} if kind == "BMP" else {"exif": exif}
    path = written(tmp_path, encoded(kind, **options))
    image, found = read_image(path)
    assert image_size(path) == ((image.height, image.width), found)
    assert found == (1 if kind == "BMP" else orientation)


def test_the_size_is_read_from_the_header(tmp_path):
    data = encoded("JPEG")
    path = written(tmp_path, data[:data.find(b"\xff\xda") + 20])  # no pixels
    assert image_size(path) == ((10, 20), 1)
    assert "unreadable" in message(read_image, path)


# What is no regular file

@pytest.mark.parametrize("make", IRREGULAR)
def test_readers_do_not_wait_for_what_is_no_file(tmp_path, make):
    path = tmp_path / "a.png"
    make(path)
    for function, *args in ((read_image,), (image_size,), (read_label,), (load_maps, 3),
                            (read_companion, (4, 4))):
        assert "a.png" in message(function, path, *args)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A VOC root of two images, with a list, masks and annotations."""
    for name in ("JPEGImages", "Annotations", "SegmentationClassAug", "ImageSets/Segmentation"):
        (tmp_path / "voc" / name).mkdir(parents=True)
    for name in ("a", "b"):
        photo().save(tmp_path / "voc" / "JPEGImages" / f"{name}.jpg")
        save_label(tmp_path / "voc" / "SegmentationClassAug" / f"{name}.png", np.zeros((10, 20)))
        annotate(tmp_path / "voc", "<annotation><object><name>cat</name></object></annotation>",
                 name)
    write_list(tmp_path / "voc", "a 1\nb 2\n")
    return tmp_path / "voc"


def annotate(root: Path, text: str, name: str = "a") -> None:
    (root / "Annotations" / f"{name}.xml").write_text(text)


def write_list(root: Path, text: str, name: str = "train_aug") -> Path:
    path = root / "ImageSets" / "Segmentation" / f"{name}.txt"
    path.write_text(text)
    return path


@pytest.mark.parametrize("make", IRREGULAR)
@pytest.mark.parametrize("name", ["x.jpg", "x.csv", "x.json", "x.xml", "x.txt"])
def test_a_folder_of_photos_may_hold_anything(tmp_path, make, name):
    for place in ("cat", "dog"):
        (tmp_path / place).mkdir()
        photo(9 if place == "cat" else 8).save(tmp_path / place / "1.jpg")
    make(tmp_path / name)
    with soon():
        root = DataRoot(tmp_path)
        assert [entry.labels for entry in root.entries("train_aug")] == [(0,), (1,)]


# Lists

@pytest.mark.parametrize("line", ["x " * 300_000, "a " + "1 " * 300_000, "a" * 600_000,
                                  "a," * 300_000, "a\t" * 300_000, "a" + " " * 600_000 + "1",
                                  ("é " * 250 + "/") * 1200])
def test_a_line_of_600_kilobytes_takes_no_time(root, line):
    write_list(root, f"b 1\n{line}\n")
    start = time.process_time()
    text = message(DataRoot(root).entries, "train_aug")
    assert "train_aug.txt, line 2: has 6" in text and "the name of one image" in text
    assert time.process_time() - start < 2


def test_many_long_lines_take_linear_time(root):
    write_list(root, ("y " * 30_000 + "\n") * 40)
    start = time.process_time()
    assert "line 1" in (text := message(DataRoot(root).entries, "train_aug"))
    assert "and 39 more lines" in text
    assert time.process_time() - start < 5


def test_a_name_with_folders_is_a_path_and_nothing_else(root):
    (root / "x.txt").write_text("a 1\n")
    (root / "ImageSets" / "x.txt").write_text("b 1\n")
    assert "no such file" in message(DataRoot(root).entries, "../x")
    assert [entry.id for entry in DataRoot(root).entries(str(root / "x.txt"))] == ["a"]


def test_a_list_larger_than_any(root, monkeypatch):
    monkeypatch.setattr("datasets.lists.MAX_LIST_BYTES", 10)
    write_list(root, "a 1\nb 1\na 1\n")
    assert "train_aug.txt: too large" in message(DataRoot(root).entries, "train_aug")


def test_deep_xml_without_objects_has_no_classes(root):
    write_list(root, "a\nb\n")
    annotate(root, "<a>" * 100_000 + "</a>" * 100_000)
    with soon():
        assert DataRoot(root).entries("train_aug")[0].labels == ()


# Formats that are not supported

@pytest.fixture
def no_heic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "IMAGE_SUFFIXES", pictures.IMAGE_SUFFIXES - {".heic", ".heif"})
    monkeypatch.setattr(pictures, "UNSUPPORTED", pictures.UNSUPPORTED | {".heic", ".heif"})


@pytest.mark.parametrize("line", ["IMG_2003.HEIC 1", "IMG_2003 1", "IMG_2003.heic, cat",
                                  "photos/IMG_2003.HEIC\tcat"])
def test_an_unsupported_file_in_a_list_is_named(root, no_heic, line):
    (root / "JPEGImages" / "IMG_2003.HEIC").write_bytes(b"\0\0\0\x1cftypheic")
    write_list(root, f"a 1\n{line}\n")
    text = message(DataRoot(root).entries, "train_aug")
    if line.endswith("heic, cat"):  # another name, on this file system
        return
    assert "line 2: IMG_2003.HEIC: format not supported; convert it to JPEG" in text


def test_unsupported_files_in_a_folder_are_named_and_counted(root, no_heic, capsys, caplog):
    for name in ("IMG_1.HEIC", "IMG_2.MOV", "IMG_3.gif", "IMG_4.cr2", "notes.txt", ".hidden.mov"):
        (root / "JPEGImages" / name).write_bytes(b"x")
    with caplog.at_level("WARNING", "drs"):
        found = DataRoot(root).pictures.skipped
    assert sorted(path.name for path in found) == ["IMG_1.HEIC", "IMG_2.MOV", "IMG_3.gif",
                                                   "IMG_4.cr2"]
    shown = caplog.text or capsys.readouterr().err
    assert "4 files passed over; IMG_1.HEIC: format not supported; convert it to JPEG" in shown
    (root / "other").mkdir()
    (root / "other" / "b.HEIC").write_bytes(b"x")
    assert "b.HEIC: format not supported" in message(find_pictures, root / "other")
    assert "b.HEIC: format not supported" in message(find_pictures, root / "other" / "b.HEIC")


def test_heic_is_read_where_it_can_be(tmp_path):
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    photo(40, 30).save(tmp_path / "IMG_2003.HEIC", "HEIF")
    assert read_image(tmp_path / "IMG_2003.HEIC")[0].size == (40, 30)
    assert image_size(tmp_path / "IMG_2003.HEIC") == ((30, 40), 1)
    assert set(find_pictures(tmp_path).by_id) == {"IMG_2003"}
    (tmp_path / "IMG_2003.HEIC").rename(tmp_path / "a.jpg")
    assert "its content is not JPEG" in message(read_image, tmp_path / "a.jpg")
