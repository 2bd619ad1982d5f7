"""download.py against a web server on loopback that misbehaves in every way asked of it."""

import dataclasses
import hashlib
import io
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import download as command
from utils import archives
from utils import download as http
from utils.files import UserError
from utils.installer import Store
from utils.logging import get_logger
from utils.released import ITEMS

ROOT = Path(__file__).resolve().parent.parent
MASKS, CLASSIFIER = ITEMS["masks"][1][0], ITEMS["drs"][1][0]
IMAGES = {f"{number:06d}.png": os.urandom(700) for number in range(8)}


class Handler(BaseHTTPRequestHandler):
    """Serves `server.files`; whatever `server` is told to get wrong, it gets wrong."""

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        server = self.server
        asked = self.headers.get("Range")
        server.log.append((self.path.rpartition("/")[2], asked))
        for status in server.statuses[:1]:
            del server.statuses[:1]
            return self.answer(status, b"", {"Retry-After": "0"})
        if server.redirect:
            return self.answer(302, b"", {"Location": server.redirect})
        body = server.files.get(self.path.rpartition("/")[2])
        if body is None:
            return self.answer(404, b"no such file", {})
        etag = f'"{hashlib.md5(body).hexdigest()}"'
        headers = {"ETag": etag} if server.etag else {}
        fresh = self.headers.get("If-Range") in (None, etag) or server.ignores_if_range
        if asked and server.ranges and fresh:
            start, total = int(asked[len("bytes="):-1]), len(body)
            if start >= total:
                return self.answer(416, b"", {"Content-Range": f"bytes */{total}"})
            headers["Content-Range"] = f"bytes {start}-{total - 1}/{total}"
            return self.answer(206, body[start:], headers)
        self.answer(200, body, headers)

    def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        server = self.server
        self.send_response(status)
        if server.length is not False:
            self.send_header("Content-Length", str(server.length or len(body)))
        for item in headers.items():
            self.send_header(*item)
        self.end_headers()
        cut = server.cuts.pop(0) if server.cuts and status < 300 else None
        body = body[:cut]
        try:
            if server.slow:  # a trickle
                for start in range(0, len(body), 1000):
                    self.wfile.write(body[start:start + 1000])
                    time.sleep(server.slow)
            else:
                self.wfile.write(body)
            if cut is not None and server.stall:
                server.over.wait(server.stall)
        except OSError:
            pass  # the client has been killed


class Server(ThreadingHTTPServer):
    """A mirror of the released files, on loopback."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.log: list[tuple[str, str | None]] = []  # names asked for, with their Range
        self.statuses: list[int] = []  # answered first, in this order
        self.cuts: list[int] = []  # the next bodies end after so many bytes ...
        self.stall = 0.0  # ... and then nothing for so many seconds, instead of the end
        self.slow = 0.0  # seconds between the kilobytes of a body
        self.length: int | bool | None = None  # announced instead of the true one; False: none
        self.ranges = self.etag = True
        self.ignores_if_range = False
        self.redirect = ""
        self.over = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/files"


@pytest.fixture(autouse=True)
def no_log_handlers():
    """main() logs to the stderr of its test, which is closed afterwards."""
    yield
    for handler in list(get_logger().handlers):
        get_logger().removeHandler(handler)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(http, "BACKOFF", 0.01)
    with Server() as instance:
        thread = threading.Thread(target=instance.serve_forever, args=(0.02,))
        thread.start()
        yield instance
        instance.over.set()
        instance.shutdown()
        thread.join()


@pytest.fixture
def store(server, tmp_path):
    return Store(tmp_path / "VOC2012", tmp_path / "checkpoints", server.url, retries=2, timeout=5)


def make_zip(files: dict[str | zipfile.ZipInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def make_tar(files: dict[str, bytes], *members: tarfile.TarInfo) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for member in members:
            archive.addfile(member)
    return buffer.getvalue()


MASKS_ZIP = make_zip({f"SegmentationClassAug/{name}": data for name, data in IMAGES.items()})
CHECKPOINT = make_zip({"archive/data.pkl": b"weights " * 100, "archive/data/0": os.urandom(5000)})
LIST = b"2007_000032 0 14\n2007_000039 19\n"
VOC_FILES = {f"VOCdevkit/VOC2012/{name}": data for name, data in {
    "JPEGImages/a.jpg": b"jpeg", "Annotations/a.xml": b"<annotation/>",
    "ImageSets/Segmentation/train.txt": b"a\n", "ImageSets/Segmentation/val.txt": b"a\n",
    "SegmentationClass/a.png": b"png"}.items()}


def contents(folder: Path) -> dict[str, bytes]:
    """All visible files below `folder`."""
    return {path.relative_to(folder).as_posix(): path.read_bytes()
            for path in folder.rglob("*") if path.is_file() and ".downloads" not in path.parts}


def run(server: Server | str, tmp_path: Path, *arguments: str, wait: bool = True):
    """The real command in a process of its own."""
    mirror = server if isinstance(server, str) else server.url
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "download.py"), "--data-root", str(tmp_path / "VOC2012"),
         "--checkpoint-dir", str(tmp_path / "checkpoints"), "--mirror", mirror, *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    if wait:
        out, err = process.communicate(timeout=20)
        return process.returncode, out, err
    return process


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.005)


# What is fetched, and where it goes


def test_all_items_reach_their_places_and_nothing_is_fetched_twice(server, tmp_path, monkeypatch,
                                                                   capsys):
    voc = make_tar(VOC_FILES)
    about, (asset,) = ITEMS["voc2012"]
    asset = dataclasses.replace(asset, md5=hashlib.md5(voc).hexdigest())
    monkeypatch.setitem(ITEMS, "voc2012", (about, (asset,)))
    server.files = {
        "VOCtrainval_11-May-2012.tar": voc,
        "SegmentationClassAug.zip": MASKS_ZIP,
        "saliency_map.zip": make_zip(IMAGES),  # no top folder
        "refined_pseudo_segmentation_labels.zip": make_zip(
            {"refined_pseudo_segmentation_labels/x.png": b"x", "__MACOSX/._x.png": b"junk",
             "refined_pseudo_segmentation_labels/.DS_Store": b"junk"}),
        **{f"{name}_cls.txt": LIST for name in ("train_aug", "train", "val")},
        **{f"{name}.pth": CHECKPOINT for name in (
            "DRS_learnable", "Refine_DRS_learnable", "deeplabv1_resnet101-coco",
            "Deeplabv2_pseudo_segmentation_labels")}}
    arguments = ["all", "--data-root", str(tmp_path / "VOC2012"), "--mirror", server.url,
                 "--checkpoint-dir", str(tmp_path / "checkpoints")]
    assert command.main(arguments) == 0
    assert sorted(name for name, _ in server.log) == sorted(server.files)
    assert contents(tmp_path / "VOC2012") == {
        **{name.removeprefix("VOCdevkit/VOC2012/"): data for name, data in VOC_FILES.items()},
        **{f"SegmentationClassAug/{name}": data for name, data in IMAGES.items()},
        **{f"saliency_map/{name}": data for name, data in IMAGES.items()},
        "refined_pseudo_segmentation_labels/x.png": b"x",
        **{f"ImageSets/Segmentation/{name}": LIST for name in server.files if "_cls" in name}}
    checkpoints = contents(tmp_path / "checkpoints")
    sums = json.loads(checkpoints.pop("SHA256SUMS.json"))
    assert checkpoints == {name: CHECKPOINT for name in server.files if name.endswith(".pth")}
    assert {name: entry["sha256"] for name, entry in sums.items()} == {
        name: hashlib.sha256(data).hexdigest() for name, data in server.files.items()}

    server.log.clear()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "VOC2012").rglob("*.*g")}
    assert command.main(arguments) == 0
    assert server.log == []
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert capsys.readouterr().out.count("already there") == 11


def test_list_names_items_addresses_and_places(tmp_path, capsys):
    arguments = ["--list", "--data-root", str(tmp_path / "data")]
    assert command.main(arguments) == 0
    out = capsys.readouterr().out
    for item in ITEMS:
        assert f"{item}: " in out
    assert "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar" in out
    assert ("https://github.com/qjadud1994/DRS/releases/download/asset/DRS_learnable.pth" in out)
    assert ("https://raw.githubusercontent.com/qjadud1994/DRS/main/VOC2012_list/val_cls.txt"
            in out)
    assert str(tmp_path / "data" / "SegmentationClassAug") in out
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("arguments", [
    [], ["nonsense"], ["drs", "--mirror", "file:///etc"], ["drs", "--mirror", "example.org"],
    ["drs", "--timeout", "0"], ["drs", "--timeout", "nan"], ["drs", "--retries", "-1"]])
def test_bad_arguments_are_refused(arguments):
    with pytest.raises(SystemExit) as error:
        command.main(arguments)
    assert error.value.code == 2


def test_one_failure_does_not_stop_the_others(server, tmp_path):
    server.files = {"SegmentationClassAug.zip": MASKS_ZIP}
    status, out, err = run(server, tmp_path, "drs", "masks")
    assert status == 1
    assert re.search(r"DRS_learnable\.pth +FAILED", out)
    assert re.search(r"SegmentationClassAug\.zip +downloaded, unpacked", out)
    (line,) = [line for line in err.splitlines() if "error" in line]
    assert "HTTP 404" in line and f"{server.url}/DRS_learnable.pth" in line
    assert CLASSIFIER.url in line and str(tmp_path / "checkpoints/DRS_learnable.pth") in line
    assert len(server.log) == 2  # a 404 is not tried again
    assert not (tmp_path / "VOC2012/SegmentationClassAug.zip").exists()


def test_archives_are_kept_on_demand(server, store):
    server.files = {MASKS.name: MASKS_ZIP}
    store.keep_archives = True
    store.install(MASKS)
    assert store.path(MASKS).read_bytes() == MASKS_ZIP


def test_files_there_by_other_means_are_not_fetched(server, store):
    folder = store.data_root / "SegmentationClassAug"
    folder.mkdir(parents=True)
    for number in range(3):
        (folder / f"{number}.png").touch()
    assert store.install(dataclasses.replace(MASKS, counts={"": 3})) == "already there"
    assert store.state(MASKS) == "not checked"
    server.files = {MASKS.name: MASKS_ZIP}  # the real count is not reached: fetched and merged
    store.install(MASKS)
    assert len(list(folder.iterdir())) == 3 + len(IMAGES)


def test_an_archive_that_waits_is_unpacked_whatever_is_there(store):
    """So many files may also be what an interrupted unpacking has left."""
    folder = store.data_root / "SegmentationClassAug"
    folder.mkdir(parents=True)
    (folder / "x.png").touch()
    store.path(MASKS).write_bytes(MASKS_ZIP)
    assert store.install(dataclasses.replace(MASKS, counts={"": 1})) == "found, unpacked"
    assert contents(folder) == {**IMAGES, "x.png": b""}


def test_a_folder_that_was_deleted_is_fetched_again(server, store):
    server.files = {MASKS.name: MASKS_ZIP}
    store.install(MASKS)
    (store.data_root / "SegmentationClassAug/000003.png").unlink()
    assert store.install(MASKS) == "downloaded, unpacked"
    assert (store.data_root / "SegmentationClassAug/000003.png").exists()


def test_labels_made_here_are_not_overwritten(server, store):
    asset = ITEMS["pseudo-labels"][1][0]
    mine = store.data_root / asset.unpack_to / "000001.png"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    server.files = {asset.name: make_zip(IMAGES)}
    with pytest.raises(UserError, match="move that folder away"):
        store.install(asset)
    assert contents(mine.parent) == {"000001.png": b"mine"}
    mine.unlink()
    store.install(asset)  # the archive is still there
    assert contents(mine.parent) == IMAGES and len(server.log) == 1


# Transfers that break


def test_a_broken_transfer_is_resumed(server, store):
    server.files, server.cuts = {CLASSIFIER.name: CHECKPOINT}, [1000, 2000]
    store.install(CLASSIFIER)
    assert store.path(CLASSIFIER).read_bytes() == CHECKPOINT
    assert server.log == [(CLASSIFIER.name, ranged) for ranged in (
        None, "bytes=1000-", "bytes=3000-")]
    assert not list(store.checkpoint_dir.glob("*.part*"))


def test_a_later_run_resumes_an_earlier_one(server, store):
    server.files, server.cuts, store.retries = {CLASSIFIER.name: CHECKPOINT}, [1500], 0
    with pytest.raises(UserError, match="1,500 of .* bytes came"):
        store.install(CLASSIFIER)
    assert not store.path(CLASSIFIER).exists()
    assert store.path(CLASSIFIER).with_suffix(".pth.part").stat().st_size == 1500
    store.install(CLASSIFIER)
    assert server.log[1] == (CLASSIFIER.name, "bytes=1500-")
    assert store.path(CLASSIFIER).read_bytes() == CHECKPOINT


def test_progress_renews_the_retries_and_none_ends_them(server, store):
    server.files, server.cuts = {CLASSIFIER.name: CHECKPOINT}, [800] * 5  # more than retries
    store.install(CLASSIFIER)
    store.path(CLASSIFIER).unlink()
    server.log.clear()
    server.cuts, server.ranges = [800] * 20, False  # from the start each time: no progress
    with pytest.raises(UserError, match="gave up after 3 x"):
        store.install(CLASSIFIER)
    assert len(server.log) == 3


def test_a_server_without_ranges_sends_all_again(server, store):
    server.files, server.cuts, server.ranges = {CLASSIFIER.name: CHECKPOINT}, [1000], False
    store.install(CLASSIFIER)
    assert store.path(CLASSIFIER).read_bytes() == CHECKPOINT
    assert [ranged for _, ranged in server.log] == [None, "bytes=1000-"]


@pytest.mark.parametrize("ignores_if_range", [False, True])
def test_two_versions_are_never_mixed(server, store, ignores_if_range):
    """Shown with a list, which has no checksum of its own that a mixture would violate."""
    asset = ITEMS["lists"][1][0]
    server.ignores_if_range = ignores_if_range
    server.files, server.cuts, store.retries = {asset.name: LIST.replace(b"2007", b"2008")}, [9], 0
    with pytest.raises(UserError):
        store.install(asset)
    server.files, store.retries = {asset.name: LIST}, 1
    store.install(asset)
    assert store.path(asset).read_bytes() == LIST
    assert len(server.log) == (3 if ignores_if_range else 2)


def test_mixed_bytes_of_a_server_without_etags_are_found_and_fetched_afresh(server, store):
    server.etag = False
    other = bytes(reversed(CHECKPOINT))
    server.files, server.cuts, store.retries = {CLASSIFIER.name: other}, [1500], 0
    with pytest.raises(UserError):
        store.install(CLASSIFIER)
    server.files, store.retries = {CLASSIFIER.name: CHECKPOINT}, 1
    store.install(CLASSIFIER)
    assert store.path(CLASSIFIER).read_bytes() == CHECKPOINT
    assert [ranged for _, ranged in server.log] == [None, "bytes=1500-", None]


def test_part_of_another_address_is_not_continued(server, store):
    server.files, server.cuts, store.retries = {CLASSIFIER.name: CHECKPOINT}, [1500], 0
    with pytest.raises(UserError):
        store.install(CLASSIFIER)
    store.mirror = server.url + "/elsewhere"
    store.install(CLASSIFIER)
    assert [ranged for _, ranged in server.log] == [None, None]


def test_complete_part_needs_no_transfer(server, store):
    """Killed between the last byte and the renaming."""
    server.files, server.cuts, store.retries = {CLASSIFIER.name: CHECKPOINT}, [1500], 0
    with pytest.raises(UserError):
        store.install(CLASSIFIER)
    store.path(CLASSIFIER).with_suffix(".pth.part").write_bytes(CHECKPOINT)
    store.install(CLASSIFIER)
    assert len(server.log) == 1 and store.path(CLASSIFIER).read_bytes() == CHECKPOINT


def test_a_stalled_server_is_left_and_the_transfer_resumed(server, store):
    server.files, server.cuts, server.stall = {CLASSIFIER.name: CHECKPOINT}, [1000], 10.0
    store.timeout = 0.3
    start = time.monotonic()
    store.install(CLASSIFIER)
    assert 0.3 <= time.monotonic() - start < 3
    assert [ranged for _, ranged in server.log] == [None, "bytes=1000-"]


def test_a_slow_server_is_waited_for(server, store):
    server.files, server.slow, store.timeout = {CLASSIFIER.name: CHECKPOINT}, 0.15, 0.5
    start = time.monotonic()
    store.install(CLASSIFIER)  # all in all longer than the timeout, no pause as long
    assert time.monotonic() - start > 0.5
    assert len(server.log) == 1 and store.path(CLASSIFIER).read_bytes() == CHECKPOINT


def test_passing_errors_are_retried(server, store):
    server.files, server.statuses = {CLASSIFIER.name: CHECKPOINT}, [503, 429]
    store.install(CLASSIFIER)
    assert len(server.log) == 3


@pytest.mark.parametrize("length, message", [
    (len(CHECKPOINT) + 10, "bytes announced, but nothing after|bytes came"),
    (len(CHECKPOINT) - 100, "cut short"),
    (10**15, "announces"),
    (False, "does not say how long")])
def test_a_wrong_size_header_is_noticed(server, store, length, message):
    server.files, server.length = {CLASSIFIER.name: CHECKPOINT}, length
    with pytest.raises(UserError, match=message):
        store.install(CLASSIFIER)
    assert not store.path(CLASSIFIER).exists() and not store.sums_path.exists()


def test_no_room_is_found_out_before_the_transfer(server, store, monkeypatch):
    server.files = {CLASSIFIER.name: CHECKPOINT}
    monkeypatch.setattr(http, "DISK_MARGIN", 1 << 60)
    with pytest.raises(UserError, match="make room"):
        store.install(CLASSIFIER)
    assert not list(store.checkpoint_dir.glob("*.part"))


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/x", "gopher://x/"])
def test_redirects_lead_to_web_servers_only(server, store, target):
    server.redirect = target
    with pytest.raises(UserError, match="redirect|not allowed"):
        store.install(CLASSIFIER)
    assert len(server.log) == 1


def test_an_unreachable_host_is_reported_with_what_to_do(tmp_path):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound, but nobody listens
        mirror = f"http://127.0.0.1:{closed.getsockname()[1]}"
        status, out, err = run(mirror, tmp_path, "lists", "--retries", "1")
    assert status == 1 and out.count("FAILED") == 3
    errors = [line for line in err.splitlines() if "error" in line]
    assert len(errors) == 3 and err.count("retry 1 of 1") == 1  # not for each file
    place = tmp_path / "VOC2012/ImageSets/Segmentation/train_cls.txt"
    assert "Connection refused" in errors[1] and f"{mirror}/train_cls.txt" in errors[1]
    assert ITEMS["lists"][1][1].url in errors[1] and f"save it as {place}" in errors[1]
    assert "Traceback" not in err


def test_an_unwritable_target_is_reported(server, tmp_path):
    (tmp_path / "VOC2012").write_text("a file where a folder should be")
    server.files = {MASKS.name: MASKS_ZIP}
    status, out, err = run(server, tmp_path, "masks")
    assert status == 1 and "FAILED" in out
    assert "--data-root: cannot write to" in err and "Traceback" not in err


# Wrong contents


def test_voc_must_have_its_known_md5(server, store):
    asset = ITEMS["voc2012"][1][0]
    server.files = {asset.name: make_tar(VOC_FILES)}
    with pytest.raises(UserError, match="6cd6e144f989b92b3379bac3b3de84fd"):
        store.install(asset)
    assert contents(store.data_root) == {} and not store.sums_path.exists()


@pytest.mark.parametrize("asset, good, other", [
    (CLASSIFIER, CHECKPOINT, make_zip({"archive/data.pkl": b"other"})),
    (MASKS, MASKS_ZIP, make_zip({"a.png": b"other"}))])
def test_later_downloads_must_match_the_first(server, store, tmp_path, asset, good, other):
    server.files = {asset.name: good}
    store.install(asset)
    server.files = {asset.name: other}
    again = dataclasses.replace(store, data_root=tmp_path / "second")
    store.path(CLASSIFIER).unlink(missing_ok=True)
    with pytest.raises(UserError, match="SHA-256 is .*SHA256SUMS.json"):
        again.install(asset)
    assert not again.path(asset).exists() and contents(again.data_root) == {}
    server.files = {asset.name: good}
    again.install(asset)


def test_a_file_that_changed_on_disk_is_noticed(server, store):
    server.files = {CLASSIFIER.name: CHECKPOINT}
    store.install(CLASSIFIER)
    store.path(CLASSIFIER).write_bytes(CHECKPOINT[:-1] + b"?")
    assert store.state(CLASSIFIER) == "wrong file"
    with pytest.raises(UserError, match="Delete it and run"):
        store.install(CLASSIFIER)


@pytest.mark.parametrize("item, body, message", [
    ("masks", b"<!DOCTYPE html><html>Please log in</html>", "web page"),
    ("drs", b"\n<html>", "web page"),
    ("lists", b"<html>", "web page"),
    ("drs", b"", "empty"),
    ("drs", b"no weights", "no PyTorch file"),
    ("drs", CHECKPOINT[:-30], "cut short"),
    ("drs", CHECKPOINT[:300] + bytes(50) + CHECKPOINT[350:], "damaged"),
    ("masks", MASKS_ZIP[:-30], "cut short"),
    ("masks", MASKS_ZIP[:100] + b"?" * 50 + MASKS_ZIP[150:], "damaged"),
    ("masks", make_zip({"readme.txt": b"no images"}), "does not hold"),
    ("lists", b"2007_000032 zero\n", "line 1"),
    ("lists", b"\xff\xfe\x00", "damaged")])
def test_what_is_not_the_file_is_refused(server, store, item, body, message):
    asset = ITEMS[item][1][0]
    server.files = {asset.name: body}
    with pytest.raises(UserError, match=message):
        store.install(asset)
    assert contents(store.data_root) == {}
    assert not store.path(asset).exists() and not store.sums_path.exists()


# Files put in place by hand


def test_hand_placed_files_are_used_and_kept(server, store):
    for asset, data in ((MASKS, MASKS_ZIP), (CLASSIFIER, CHECKPOINT)):
        store.path(asset).parent.mkdir(parents=True, exist_ok=True)
        store.path(asset).write_bytes(data)
        store.path(asset).with_name(f"{asset.name}.part").write_bytes(b"half")
    assert store.install(MASKS) == "found, unpacked"
    assert store.install(CLASSIFIER) == "found"
    assert server.log == []
    assert not list(store.data_root.glob("*.part")) + list(store.checkpoint_dir.glob("*.part"))
    assert contents(store.data_root / "SegmentationClassAug") == IMAGES
    assert store.path(MASKS).read_bytes() == MASKS_ZIP  # the user's own
    assert set(json.loads(store.sums_path.read_text())) == {MASKS.name, CLASSIFIER.name}


def test_a_broken_hand_placed_file_is_refused_and_kept(store):
    store.path(MASKS).parent.mkdir(parents=True)
    for broken in (MASKS_ZIP[:-50], MASKS_ZIP[:100] + b"?" * 50 + MASKS_ZIP[150:]):
        store.path(MASKS).write_bytes(broken)
        with pytest.raises(UserError, match="SegmentationClassAug.zip cannot be used"):
            store.install(MASKS)
        assert store.path(MASKS).read_bytes() == broken
        assert not (store.data_root / "SegmentationClassAug").exists()


# Hostile archives


def zip_entry(name: str, mode: int = 0) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return info


def tar_entry(name: str, kind: bytes, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def encrypted() -> bytes:
    data = bytearray(make_zip({"a.png": b"x"}))
    for header, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(header) + offset] |= 1
    return bytes(data)


def twice() -> bytes:
    return make_zip({"a.png": b"1", "b.png": b"2"}).replace(b"b.png", b"a.png")


def lying_zip(size: int, claimed: int) -> bytes:
    """An archive of one file whose directory claims another size."""
    data = bytearray(make_zip({"a.png": bytes(size)}))
    at = data.index(b"PK\x01\x02") + 24
    data[at:at + 4] = claimed.to_bytes(4, "little")
    return bytes(data)


HOSTILE = {
    "climbs": (".zip", make_zip({"ok.png": b"", "../evil.png": b"x"}), "unsafe name"),
    "climbs within": (".zip", make_zip({"a/../../evil.png": b"x"}), "unsafe name"),
    "absolute": (".zip", make_zip({"/tmp/evil.png": b"x"}), "unsafe name"),
    "drive": (".zip", make_zip({"C:/evil.png": b"x"}), "unsafe name"),
    "backslash": (".zip", make_zip({"..\\evil.png": b"x"}), "unsafe name"),
    "nul": (".zip", make_zip({"a.png_/../evil": b"x"}).replace(b"g_/", b"g\0/"), "unsafe name"),
    "deep": (".zip", make_zip({"d/" * 50 + "a.png": b"x"}), "unsafe name"),
    "symlink": (".zip", make_zip({zip_entry("a.png", stat.S_IFLNK | 0o777): b"/etc/passwd"}),
                "link"),
    "device": (".zip", make_zip({zip_entry("a.png", stat.S_IFBLK | 0o666): b""}), "device"),
    "encrypted": (".zip", encrypted(), "it is encrypted"),
    "twice": (".zip", twice(), "twice"),
    "file and folder": (".zip", make_zip({"a": b"1", "a/b.png": b"2"}), "twice"),
    "bomb": (".zip", make_zip({"a.png": bytes(20 << 20)}), "times its own size"),
    "bomb in parts": (".zip", make_zip({f"{n}.png": bytes(6 << 20) for n in range(3)}),
                      "times its own size"),
    "lying bomb": (".zip", lying_zip(20 << 20, claimed=1), "damaged"),
    "short": (".zip", lying_zip(10, claimed=11), "has 10 of 11 bytes"),
    "tar climbs": (".tar", make_tar({"../evil.png": b"x"}), "unsafe name"),
    "tar absolute": (".tar", make_tar({"/tmp/evil.png": b"x"}), "unsafe name"),
    "tar symlink": (".tar", make_tar({}, tar_entry("a.png", tarfile.SYMTYPE, "/etc/passwd")),
                    "link"),
    "tar hardlink": (".tar", make_tar({}, tar_entry("a.png", tarfile.LNKTYPE, "/etc/passwd")),
                     "link"),
    "tar device": (".tar", make_tar({}, tar_entry("a.png", tarfile.CHRTYPE)), "device"),
    "tar fifo": (".tar", make_tar({}, tar_entry("a.png", tarfile.FIFOTYPE)), "device"),
    "tar sparse": (".tar", make_tar({}, tar_entry("a.png", tarfile.GNUTYPE_SPARSE)), "sparse"),
    "tar twice": (".tar", make_tar({"a.png": b"1", "./a.png": b"2"}), "twice"),
    "tar cut": (".tar", make_tar({"a.png": bytes(5000)})[:3000], "damaged"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_archives_are_refused(tmp_path, name):
    suffix, data, message = HOSTILE[name]
    archive = tmp_path / f"hostile{suffix}"
    archive.write_bytes(data)
    folder = tmp_path / "inner/folder"
    with pytest.raises(archives.ArchiveError, match=message):
        archives.unpack(archive, folder)
    assert {path.name for path in tmp_path.iterdir()} == {archive.name, "inner"}
    assert [path.name for path in (tmp_path / "inner").iterdir()] == ["folder"]
    assert not any(path.is_symlink() for path in tmp_path.rglob("*"))


@pytest.mark.parametrize("suffix, data", [
    (".zip", make_zip({f"{n}.png": b"12" for n in range(6)})),
    (".tar", make_tar({f"{n}.png": b"12" for n in range(6)}))])
@pytest.mark.parametrize("limits, message", [
    (archives.Limits(entries=5), "more than 5 entries"),
    (archives.Limits(total=11), "unpacks to more than"),
    (archives.Limits(entries=6, total=12), None)])
def test_limits(tmp_path, suffix, data, limits, message):
    archive = tmp_path / f"archive{suffix}"
    archive.write_bytes(data)
    if message is None:
        archives.unpack(archive, tmp_path / "folder", limits)
        assert len(contents(tmp_path / "folder")) == 6
    else:
        with pytest.raises(archives.ArchiveError, match=message):
            archives.unpack(archive, tmp_path / "folder", limits)


def test_limits_hold_while_writing_whatever_the_headers_say():
    budget = archives._Budget(archives.Limits(total=100), archive_bytes=100)
    budget.add_bytes(60)
    with pytest.raises(archives.ArchiveError):
        budget.add_bytes(60)


def test_a_hostile_download_leaves_nothing(server, store, tmp_path):
    server.files = {MASKS.name: make_zip({"ok.png": b"1", "../../../evil.png": b"2"})}
    with pytest.raises(UserError, match="unsafe name"):
        store.install(MASKS)
    assert not list(tmp_path.rglob("*.png")) and not store.sums_path.exists()
    server.files = {MASKS.name: MASKS_ZIP}
    store.install(MASKS)


# Interruptions


def test_kill_while_fetching_then_again(server, tmp_path):
    body = make_zip({"archive/data.pkl": os.urandom(400_000)})
    server.files, server.slow = {CLASSIFIER.name: body}, 0.005
    target = tmp_path / "checkpoints" / CLASSIFIER.name
    part = target.with_suffix(".pth.part")
    process = run(server, tmp_path, "drs", wait=False)
    wait_until(lambda: part.exists() and part.stat().st_size > 100_000)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL and not target.exists()
    size = part.stat().st_size
    assert body.startswith(part.read_bytes()) and size < len(body)
    server.slow = 0.0
    assert run(server, tmp_path, "drs")[0] == 0
    assert server.log == [(CLASSIFIER.name, None), (CLASSIFIER.name, f"bytes={size}-")]
    assert target.read_bytes() == body and not part.exists()


KILLED_AT = """
import os, signal, sys
from pathlib import Path
import download
from utils import archives, installer

calls = 0

def wrap(module, name):
    function = getattr(module, name)
    def wrapped(*args, **kwargs):
        global calls
        calls += 1
        if calls == int(sys.argv[1]):
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    setattr(module, name, wrapped)

for module, name in ((os, "replace"), (os, "rename"), (os, "sync"), (Path, "unlink"),
                     (archives, "_write_one"), (installer.Store, "_record")):
    wrap(module, name)
sys.exit(download.main(sys.argv[2:]))
"""


def test_kill_at_every_step_then_again(server, tmp_path):
    """Killed before each step that writes, renames or removes: what is in place is whole."""
    images = dict(list(IMAGES.items())[:3])
    expected = {**images, "mine.png": b"mine"}
    server.files = {MASKS.name: make_zip(images)}
    for step in range(1, 100):
        base = tmp_path / str(step)
        goal = base / "VOC2012/SegmentationClassAug"
        goal.mkdir(parents=True)
        (goal / "mine.png").write_bytes(b"mine")  # so that files are merged one by one
        arguments = ["masks", "--data-root", str(base / "VOC2012"), "--mirror", server.url,
                     "--checkpoint-dir", str(base / "checkpoints")]
        status = subprocess.run([sys.executable, "-c", KILLED_AT, str(step), *arguments],
                                cwd=ROOT, capture_output=True, timeout=20).returncode
        assert status in (0, -signal.SIGKILL)
        for path in goal.iterdir():
            assert path.read_bytes() == expected[path.name]
        archive = base / "VOC2012" / MASKS.name
        assert not archive.exists() or archive.read_bytes() == server.files[MASKS.name]
        fetched = archive.exists()
        server.log.clear()
        assert command.main(arguments) == 0
        assert contents(goal) == expected
        assert MASKS.name in (base / "checkpoints/SHA256SUMS.json").read_text()
        assert not list((base / "VOC2012").rglob("*.unpack")), "leftovers"
        if fetched:
            assert server.log == []
        if status == 0:
            break
    assert step > 12 and status == 0


def test_two_processes_at_once_share_the_work(server, tmp_path):
    server.files, server.slow = {MASKS.name: MASKS_ZIP}, 0.05
    processes = [run(server, tmp_path, "masks", wait=False) for _ in range(2)]
    outputs = [process.communicate(timeout=20)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert len(server.log) == 1
    assert sum("already there" in out for out in outputs) == 1
    assert contents(tmp_path / "VOC2012/SegmentationClassAug") == IMAGES


def test_ctrl_c_ends_with_a_clean_line(server, tmp_path):
    server.files, server.slow = {CLASSIFIER.name: CHECKPOINT * 20}, 0.05
    process = run(server, tmp_path, "drs", wait=False)
    wait_until((tmp_path / "checkpoints" / f"{CLASSIFIER.name}.part").exists)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=10)
    assert process.returncode == 130
    assert "interrupted: run the same command again" in err and "Traceback" not in err
