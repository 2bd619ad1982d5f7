"""download.py against a web server on loopback that misbehaves in every way asked of it."""

import errno
import hashlib
import io
import json
import os
import random
import re
import shutil
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
import requests
from helpers import ROOT

import download
from fetching import store, transport
from fetching.catalogue import ITEMS, PAPER, Asset
from utils import files
from utils.files import UserError
from utils.logging import get_logger

MASKS, WEIGHTS, LISTED, VOC, U2NET = (
    ITEMS[item][1][0] for item in ("masks", "drs", "lists", "voc2012", "u2net"))
IMAGES = {f"{number:06d}.png": os.urandom(700) for number in range(6)}
VOC_FILES = {f"VOCdevkit/VOC2012/{name}": data for name, data in {
    "JPEGImages/a.jpg": b"jpeg", "Annotations/a.xml": b"<annotation/>",
    "ImageSets/Segmentation/train.txt": b"a\n", "SegmentationClass/a.png": b"png"}.items()}


def make_zip(content: dict, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def make_tar(content: dict[str, bytes], *members: tarfile.TarInfo) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in content.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for member in members:
            archive.addfile(member)
    return buffer.getvalue()


MASKS_ZIP = make_zip({f"SegmentationClassAug/{name}": data for name, data in IMAGES.items()})
CHECKPOINT = make_zip({"archive/data.pkl": b"weights", "archive/data/0": os.urandom(300_000)})


class Handler(BaseHTTPRequestHandler):
    """Serves `server.files`; whatever `server` is told to get wrong, it gets wrong."""

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        server, name, asked = self.server, self.path.rpartition("/")[2], self.headers.get("Range")
        server.log.append(asked)
        body = server.files.get(name, b"")
        etag = f'"{hashlib.md5(body).hexdigest()}"'
        headers = {"ETag": etag} if server.etag else {}
        fresh = self.headers.get("If-Range") in (None, etag) or server.ignores_if_range
        if server.statuses:
            self.answer(server.statuses.pop(0), b"", {})
        elif server.redirect and "/there/" not in self.path:
            self.answer(302, bytes(server.redirect_size), {"Location": server.redirect})
        elif name not in server.files:
            self.answer(404, b"no such file", {})
        elif asked and server.ranges and fresh:
            start, total = int(asked[len("bytes="):-1]), len(body)
            headers["Content-Range"] = f"bytes {start}-{total - 1}/{total}"
            if start < total:
                self.answer(206, body[start:] + server.surplus, headers)
            else:
                self.answer(416, b"", {"Content-Range": f"bytes */{total}"})
        else:
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
        try:
            for start in range(0, len(body[:cut]), 10_000):
                self.wfile.write(body[:cut][start:start + 10_000])
                time.sleep(server.slow)
            if cut is not None and server.stall:
                server.over.wait(server.stall)
        except OSError:
            pass  # the client has gone


class Server(ThreadingHTTPServer):
    """A mirror of the released files, on loopback."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.log: list[str | None] = []  # the Range of each request
        self.statuses: list[int] = []  # answered first, in this order
        self.cuts: list[int] = []  # the next bodies end after so many bytes ...
        self.stall = 0.0  # ... and then nothing for so many seconds, instead of the end
        self.slow = 0.0  # seconds between the pieces of a body
        self.length: int | bool | None = None  # announced instead of the true one; False: none
        self.ranges = self.etag = True
        self.ignores_if_range = False
        self.redirect, self.redirect_size, self.surplus = "", 0, b""
        self.over = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}/files"


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(transport, "BACKOFF", 0.01)
    with Server() as instance:
        thread = threading.Thread(target=instance.serve_forever, args=(0.02,))
        thread.start()
        yield instance
        instance.over.set()
        instance.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def no_log_handlers():
    """main() logs to the stderr of its test, which is closed afterwards."""
    yield
    get_logger().handlers.clear()


class Shop:
    """Installs assets from the server into the folders of the test."""

    def __init__(self, server: Server, folder: Path) -> None:
        self.server, self.folder, self.mirror = server, folder, server.url
        self.retries, self.timeout, self.keep = 2, 5.0, False

    def job(self, asset: Asset) -> store.Installation:
        return store.Installation(asset, self.folder / "VOC2012", self.folder / "checkpoints",
                                  self.mirror)

    def install(self, asset: Asset, body: bytes | None = None) -> str:
        if body is not None:
            self.server.files = {self.job(asset).name: body}
        return self.job(asset).install(self.retries, self.timeout, self.keep)

    def refusal(self, asset: Asset, reason: str, body: bytes | None = None) -> None:
        with pytest.raises((UserError, OSError), match=reason):
            self.install(asset, body)

    def interrupt(self, asset: Asset, body: bytes) -> int:
        """Break a download off; returns how many bytes have arrived."""
        self.server.cuts, self.retries = [100_000], 0
        self.refusal(asset, "gave up after 1 x", body)
        self.retries = 2
        return self.job(asset).part.stat().st_size

    def arguments(self, *args: str) -> list[str]:
        return [*args, "--data-root", str(self.folder / "VOC2012"), "--mirror", self.mirror,
                "--checkpoint-dir", str(self.folder / "checkpoints")]

    def start(self, *args: str) -> subprocess.Popen:
        """The real command in a process of its own."""
        return subprocess.Popen(
            [sys.executable, str(ROOT / "download.py"), *self.arguments(*args)], text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=self.folder)

    def run(self, *args: str) -> tuple[int, str, str]:
        process = self.start(*args)
        return *process.communicate(timeout=60)[::-1], process.returncode


@pytest.fixture
def shop(server, tmp_path):
    return Shop(server, tmp_path)


def contents(folder: Path) -> dict[str, bytes]:
    """All visible files below `folder`."""
    return {path.relative_to(folder).as_posix(): path.read_bytes()
            for path in folder.rglob("*") if path.is_file() and not any(
                part.startswith(".") for part in path.relative_to(folder).parts)}


def leftovers(folder: Path) -> list[str]:
    """What lies in the folders for unfinished business, and temporary files anywhere."""
    return [path.name for path in (*folder.rglob(".downloads/*"), *folder.rglob(".*.tmp*"))
            if path.name != "lock" and not path.name.endswith(".content.json")]


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.005)


# What is fetched, and where it goes


def test_all_files_of_the_paper_reach_their_places_once(server, shop, monkeypatch, capsys):
    voc, listed = make_tar(VOC_FILES), b"2007_000032 0 14\n"
    monkeypatch.setitem(ITEMS, "voc2012", ("", [VOC._replace(md5=hashlib.md5(voc).hexdigest())]))
    server.files = {
        "VOCtrainval_11-May-2012.tar": voc, "SegmentationClassAug.zip": MASKS_ZIP,
        "saliency_map.zip": make_zip(IMAGES),  # no top folder
        "refined_pseudo_segmentation_labels.zip": make_zip({
            "__MACOSX/refined/._x.png": b"junk", "refined/.DS_Store": b"", "refined/x.png": b"x"}),
        **{f"{name}_cls.txt": listed for name in ("train_aug", "train", "val")},
        **{f"{name}.pth": CHECKPOINT for name in (
            "DRS_learnable", "Refine_DRS_learnable", "deeplabv1_resnet101-coco",
            "Deeplabv2_pseudo_segmentation_labels")}}
    assert download.main(download.parse(shop.arguments("all"))) == 0
    assert len(server.log) == len(server.files)
    assert contents(shop.folder / "VOC2012") == {
        **{name.removeprefix("VOCdevkit/VOC2012/"): data for name, data in VOC_FILES.items()},
        **{f"{folder}/{name}": data for name, data in IMAGES.items()
           for folder in ("SegmentationClassAug", "saliency_map")},
        "refined_pseudo_segmentation_labels/x.png": b"x",
        **{f"ImageSets/Segmentation/{name}": listed for name in server.files if "_cls" in name}}
    checkpoints = contents(shop.folder / "checkpoints")
    sums = json.loads(checkpoints.pop("SHA256SUMS.json"))
    assert checkpoints == {name: CHECKPOINT for name in server.files if name.endswith(".pth")}
    assert sums == {name: {"sha256": hashlib.sha256(data).hexdigest()}
                    for name, data in server.files.items() if data != voc}  # its MD5 is known
    assert leftovers(shop.folder) == []

    before = {path: path.stat().st_mtime_ns for path in shop.folder.rglob("*")}
    assert download.main(download.parse(shop.arguments("all"))) == 0
    assert len(server.log) == 11 and capsys.readouterr().out.count("already there") == 11
    assert before == {path: path.stat().st_mtime_ns for path in shop.folder.rglob("*")}


def test_what_is_not_of_the_paper_is_fetched_by_name_only(server, shop, monkeypatch):
    assert set(ITEMS) - set(PAPER) == {"coco2014", "u2net", "isnet"}
    monkeypatch.chdir(shop.folder)
    server.files = {"train2014.zip": make_zip({"train2014/1.jpg": b"t"}),
                    "val2014.zip": make_zip({"val2014/2.jpg": b"v"}),
                    "annotations_trainval2014.zip": make_zip({"annotations/3.json": b"{}"})}
    about, assets = ITEMS["coco2014"]
    monkeypatch.setitem(ITEMS, "coco2014", (about, [
        asset._replace(md5=hashlib.md5(server.files[shop.job(asset).name]).hexdigest())
        for asset in assets]))
    assert download.main(download.parse(["coco2014", "--mirror", server.url])) == 0
    assert contents(shop.folder / "COCO2014") == {
        "train2014/1.jpg": b"t", "val2014/2.jpg": b"v", "annotations/3.json": b"{}"}
    shop.refusal(U2NET, "its md5 is .*, not 60024c5c889badc19c04ad937298a77b", b"\x08other")


def test_list_names_items_addresses_and_places(tmp_path, capsys):
    assert download.parse(["--list"]) == download.parse([])
    assert download.main(download.parse(["--list", "--data-root", str(tmp_path)])) == 0
    out = capsys.readouterr().out
    for item, (_, assets) in ITEMS.items():
        for asset in assets:
            assert re.search(f"^{item} .* {re.escape(asset.url)}$", out, re.MULTILINE)
    assert str(tmp_path / "SegmentationClassAug") in out and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("args", ["nonsense", "drs --mirror file:///etc", "drs --mirror x.org",
                                  "drs --timeout 0", "drs --timeout nan", "drs --retries -1"])
def test_bad_arguments_are_refused(args):
    with pytest.raises(SystemExit) as error:
        download.parse(args.split())
    assert error.value.code == 2


def test_help_does_not_wait_for_libraries():
    done = subprocess.run([sys.executable, "-c", "import sys, download; download.parse(['drs']); "
                           "print({'torch', 'requests', 'tqdm'} & set(sys.modules))"],
                          cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout == "set()\n", done.stderr


def test_files_there_by_other_means_are_not_fetched_nor_replaced(server, shop):
    folder = shop.job(MASKS).place
    folder.mkdir(parents=True)
    (folder / "mine.png").write_bytes(b"mine")
    (folder / "000001.png").write_bytes(b"mine as well")
    assert shop.install(MASKS._replace(counts={"*.png": 2})) == "already there"
    assert MASKS.counts == {"*.png": 12_031}  # not reached: fetched, and merged
    shop.refusal(MASKS, "000001.png is another file than in .*: move it away", MASKS_ZIP)
    assert len(contents(folder)) == 2
    (folder / "000001.png").unlink()
    shop.install(MASKS)
    assert contents(folder) == IMAGES | {"mine.png": b"mine"} and len(server.log) == 1
    (folder / "mine.png").unlink()
    (folder / "000003.png").unlink()  # noticed, and fetched again
    shop.install(MASKS)
    assert contents(folder) == IMAGES and len(server.log) == 2


# Transfers that break


def test_a_broken_transfer_is_resumed_as_long_as_there_is_progress(server, shop):
    server.statuses, server.cuts = [503, 429], [50_000] * 5
    shop.install(WEIGHTS, CHECKPOINT)  # 5 breaks, with 2 retries
    assert shop.job(WEIGHTS).own.read_bytes() == CHECKPOINT and leftovers(shop.folder) == []
    offsets = [int(ranged[6:-1]) for ranged in server.log[3:]]
    assert offsets == sorted(set(offsets)) and len(offsets) == 5
    assert offsets[0] > 50_000 - transport.BLOCK
    shop.job(WEIGHTS).own.unlink()
    server.log.clear()
    server.cuts, server.ranges = [50_000] * 20, False  # from the start each time: no progress
    shop.refusal(WEIGHTS, "gave up after 3 x")
    assert len(server.log) == 3


@pytest.mark.parametrize("is_complete", [False, True])  # killed after the last byte
def test_a_later_run_resumes_an_earlier_one(server, shop, is_complete):
    size = shop.interrupt(WEIGHTS, CHECKPOINT)
    assert size > 100_000 - transport.BLOCK and not shop.job(WEIGHTS).own.exists()
    if is_complete:
        shop.job(WEIGHTS).part.write_bytes(CHECKPOINT)
    shop.install(WEIGHTS)
    assert server.log == [None, f"bytes={size}-"][:1 if is_complete else 2]
    assert shop.job(WEIGHTS).own.read_bytes() == CHECKPOINT


@pytest.mark.parametrize("change", ["none", "ignores If-Range", "no ETag", "no ranges", "mirror"])
def test_two_versions_are_never_mixed(server, shop, change):
    """Shown with a list, which has no form that a mixture would violate."""
    server.etag = change != "no ETag"
    assert shop.interrupt(LISTED, b"2007 1\n" * 20_000) > 0
    server.ranges, server.ignores_if_range = change != "no ranges", change == "ignores If-Range"
    shop.mirror += "/elsewhere" * (change == "mirror")
    shop.install(LISTED, b"2008 2\n" * 20_000)
    assert shop.job(LISTED).own.read_bytes() == b"2008 2\n" * 20_000
    assert len(server.log) == (3 if change == "ignores If-Range" else 2)


def test_a_stalled_server_is_left_and_a_slow_one_is_not(server, shop):
    server.cuts, server.stall, shop.timeout = [100_000], 20.0, 0.8
    begin = time.monotonic()
    shop.install(WEIGHTS, CHECKPOINT)
    assert 0.8 <= time.monotonic() - begin < 15 and len(server.log) == 2
    shop.job(WEIGHTS).own.unlink()
    server.slow = 0.03  # all in all longer than the timeout, no pause as long
    shop.install(WEIGHTS)
    assert len(server.log) == 3


@pytest.mark.parametrize("length, message", [
    (len(CHECKPOINT) + 10, "gave up"), (len(CHECKPOINT) - 100, "cut short"),
    (10**15, "no room"), (False, "does not say how long"), (-5, "does not say how long")])
def test_a_wrong_size_header_is_noticed(server, shop, length, message):
    server.length = length
    shop.refusal(WEIGHTS, message, CHECKPOINT)
    assert contents(shop.folder) == {}


def test_more_than_was_asked_for_does_not_fill_the_disk(server, shop):
    shop.interrupt(WEIGHTS, CHECKPOINT)
    server.surplus, shop.retries = bytes(30 << 20), 0
    shop.refusal(WEIGHTS, "bytes came")
    assert shop.job(WEIGHTS).part.stat().st_size < len(CHECKPOINT) + (1 << 20)
    shop.retries = 1  # what is too long is of no use
    shop.install(WEIGHTS)
    assert shop.job(WEIGHTS).own.read_bytes() == CHECKPOINT


@pytest.mark.parametrize("target, message", [
    ("file:///etc/passwd", "file:///etc/passwd"), ("ftp://127.0.0.1/x", "ftp"),
    ("http://[::1", "IPv6"), ("/again", "redirects"), ("/there/DRS_learnable.pth", None)])
def test_redirects_lead_to_web_servers_and_end(server, shop, target, message):
    server.redirect, server.redirect_size = target, 10_000_000  # a body that nobody should read
    if message:
        shop.refusal(WEIGHTS, message, CHECKPOINT)
        assert contents(shop.folder) == {}
    else:
        shop.install(WEIGHTS, CHECKPOINT)


def test_a_redirect_from_https_to_http_is_refused(server, shop, monkeypatch):
    send = requests.adapters.HTTPAdapter.send

    def secure_host_that_redirects(self, request, **options):
        if not request.url.startswith("https:"):
            return send(self, request, **options)
        response = requests.Response()
        response.status_code, response.url, response.request = 302, request.url, request
        response.headers["Location"], response.raw = f"{server.url}/x.pth", io.BytesIO()
        return response

    monkeypatch.setattr(requests.adapters.HTTPAdapter, "send", secure_host_that_redirects)
    shop.mirror = "https://example.org"
    shop.refusal(WEIGHTS, "refused the redirect to 'http://127")
    assert server.log == []


def test_failures_are_one_line_with_what_to_do(server, shop):
    server.files = {"SegmentationClassAug.zip": MASKS_ZIP}
    err, out, status = shop.run("drs", "masks")
    assert status == 1 and re.search("drs +FAILED", out) and re.search("masks +downloaded", out)
    (line,) = [line for line in err.splitlines() if "error" in line]
    assert "HTTP 404" in line and f"{server.url}/DRS_learnable.pth" in line
    assert WEIGHTS.url in line and str(shop.folder / "checkpoints/DRS_learnable.pth") in line
    assert len(server.log) == 2  # a 404 is not tried again
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound, but nobody listens
        shop.mirror = f"http://127.0.0.1:{closed.getsockname()[1]}"
        shutil.rmtree(shop.folder / "VOC2012")
        (shop.folder / "VOC2012").write_text("a file where a folder should be")
        err, out, status = shop.run("drs", "lists", "--retries", "0")
    assert status == 1 and out.count("FAILED") == 4 and "Traceback" not in err
    errors = [line for line in err.splitlines() if "error" in line]
    assert "Connection refused" in errors[0] and len(errors) == 4
    assert "--data-root: cannot write to" in errors[1]


# Wrong contents, and files put in place by hand


@pytest.mark.parametrize("asset, good, other", [
    (WEIGHTS, CHECKPOINT, make_zip({"archive/data.pkl": b"other"})),
    (MASKS, MASKS_ZIP, make_zip({"a.png": b"other"}))])
def test_later_downloads_must_match_the_first(shop, asset, good, other):
    shop.install(asset, good)
    shutil.rmtree(shop.folder / "VOC2012", ignore_errors=True)
    shop.job(WEIGHTS).own.unlink(missing_ok=True)
    shop.refusal(asset, "its sha256 is .*SHA256SUMS.json; remove it there if wrong", other)
    assert list(contents(shop.folder)) == ["checkpoints/SHA256SUMS.json"]
    shop.install(asset, good)
    for damage in ("{", "[1]", "[" * 100_000):
        (shop.folder / "checkpoints/SHA256SUMS.json").write_text(damage)
        shutil.rmtree(shop.folder / "VOC2012", ignore_errors=True)
        shop.refusal(asset, "SHA256SUMS.json is no JSON object .* mend or delete it")


@pytest.mark.parametrize("asset, body, message", [
    (MASKS, b"<!DOCTYPE html><html>Please log in</html>", "web page"),
    (WEIGHTS, b"\n<html>", "web page"), (LISTED, b"<html>", "web page"),
    (WEIGHTS, b"", "empty"), (WEIGHTS, b"no weights", "no PyTorch file"),
    (WEIGHTS, CHECKPOINT[:-30], "cut short"), (MASKS, MASKS_ZIP[:-30], "cut short"),
    (MASKS, MASKS_ZIP[:100] + b"?" * 50 + MASKS_ZIP[150:], "damaged"),
    (MASKS, make_zip({"readme.txt": b"no images"}), "does not hold"),
    (VOC, make_tar(VOC_FILES), "its md5 is .* not 6cd6e144f989b92b3379bac3b3de84fd")])
def test_what_is_not_the_file_is_refused(shop, asset, body, message):
    shop.refusal(asset, message, body)
    assert contents(shop.folder) == {} and leftovers(shop.folder) == []
    if message != "empty":  # put there by hand, it is refused as well, but kept
        shop.job(asset).own.parent.mkdir(parents=True, exist_ok=True)
        shop.job(asset).own.write_bytes(body)
        shop.refusal(asset, f"{shop.job(asset).name} .delete it to fetch it.: .*{message}")
        assert list(contents(shop.folder).values()) == [body]


def test_a_file_that_changed_on_disk_is_noticed(shop, capsys):
    shop.install(WEIGHTS, CHECKPOINT)
    shop.job(WEIGHTS).own.write_bytes(CHECKPOINT[:-1] + b"?")
    shop.refusal(WEIGHTS, "delete it to fetch it")
    assert download.main(download.parse(shop.arguments("drs", "--list"))) == 1
    assert re.search("drs +FAILED", capsys.readouterr().out)


@pytest.mark.parametrize("keep", [False, True])
def test_whose_an_archive_is_shows_where_it_lies(server, shop, keep):
    shop.keep = keep
    shop.install(MASKS, MASKS_ZIP)
    own = shop.job(MASKS).own
    assert own.is_file() == keep and leftovers(shop.folder) == []
    shutil.rmtree(shop.job(MASKS).place)
    own.write_bytes(MASKS_ZIP)
    shop.interrupt(WEIGHTS, CHECKPOINT)
    shop.job(WEIGHTS).own.write_bytes(CHECKPOINT)
    assert shop.install(MASKS) == shop.install(WEIGHTS) == "found"
    assert len(server.log) == 2 and leftovers(shop.folder) == []
    assert contents(shop.job(MASKS).place) == IMAGES and own.read_bytes() == MASKS_ZIP


# Hostile archives


def zip_entry(name: str, mode: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return info


def tar_entry(kind: bytes) -> bytes:
    info = tarfile.TarInfo("a.png")
    info.type, info.linkname = kind, "/etc/passwd"
    return make_tar({}, info)


def patched(data: bytes, offset: int, value: bytes, signature: bytes = b"PK\x01\x02") -> bytes:
    """A .zip with other bytes at `offset` in its directory entry."""
    at = data.index(signature) + offset
    return data[:at] + value + data[at + len(value):]


HOSTILE = {
    **{f"zip {name}": make_zip({"ok.png": b"", name: b"x"}) for name in (
        "../evil.png", "a/../../evil.png", "/tmp/evil.png", "C:/evil.png", "..\\evil.png",
        "\x1b[2J.png", "d/" * 50 + "a.png", "a" * 5000, "ok.png/b.png")},
    "zip link": make_zip({zip_entry("a.png", stat.S_IFLNK | 0o777): b"/etc/passwd"}),
    "zip device": make_zip({zip_entry("a.png", stat.S_IFBLK | 0o666): b""}),
    "zip encrypted": patched(patched(make_zip({"a": b"x"}), 8, b"\1"), 6, b"\1", b"PK\3\4"),
    "zip lying bomb": patched(make_zip({"a.png": bytes(20 << 20)}), 24, b"\1\0\0\0"),
    "zip method": patched(make_zip({"a.png": b"x"}), 10, b"\x63"),
    "tar ../evil.png": make_tar({"../evil.png": b"x"}),
    "tar /tmp/evil.png": make_tar({"/tmp/evil.png": b"x"}),
    **{f"tar {kind}": tar_entry(kind) for kind in (
        tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE)},
    "tar cut": make_tar({"a.png": bytes(5000)})[:3000],
}


@pytest.mark.parametrize("has_filter", [True, False])  # Python 3.10.12 and later, and before
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_archives_are_refused(tmp_path, monkeypatch, name, has_filter):
    if not has_filter:
        monkeypatch.delattr(tarfile, "data_filter", raising=False)
    (tmp_path / "archive").write_bytes(HOSTILE[name])
    (tmp_path / "inner").mkdir()
    with pytest.raises(UserError, match="link, a device or an unsafe|damaged"):
        store.unpack(tmp_path / "archive", tmp_path / "inner", name.startswith("tar"), "*")
    assert {path.name for path in tmp_path.iterdir()} == {"archive", "inner"}
    assert not any(path.is_symlink() for path in tmp_path.rglob("*"))


@pytest.mark.parametrize("is_tar, make", [(False, make_zip), (True, make_tar)])
def test_limits_and_damage(tmp_path, monkeypatch, is_tar, make):
    archive, folder = tmp_path / "archive", tmp_path / "inner/folder"
    data = make({f"d/{n}.png": b"12" for n in range(6)})

    def unpack(data: bytes, message: str | None = None) -> None:
        archive.write_bytes(data)
        folder.mkdir(parents=True)
        said = ""
        try:
            store.unpack(archive, folder, is_tar, "*.png")
        except UserError as error:
            said = str(error)
        assert "\n" not in said
        if message is not None:  # else it may be refused or not
            assert message in said if message else not said
        assert {path.name for path in tmp_path.iterdir()} == {"archive", "inner"}
        shutil.rmtree(folder)

    monkeypatch.setattr(store, "MAX_ENTRIES", 6)
    for total, message in ((12, ""), (11, "too many"), (12, "too many")):
        monkeypatch.setattr(store, "MAX_TOTAL", total)
        unpack(data, message)
        monkeypatch.setattr(store, "MAX_ENTRIES", 6 if total == 12 else 5)
    monkeypatch.undo()
    rng = random.Random(0)
    for _ in range(150):
        damaged = bytearray(data)
        for _ in range(rng.randint(1, 8)):
            damaged[rng.randrange(len(data))] = rng.randrange(256)
        unpack(damaged)


# Interruptions, and the disk


def test_kill_while_fetching_then_again(server, shop):
    body, job = make_zip({"archive/data.pkl": os.urandom(2_000_000)}), shop.job(WEIGHTS)
    server.files, server.slow = {job.name: body}, 0.02
    process = shop.start("drs")
    wait_until(lambda: job.part.exists() and job.part.stat().st_size > 100_000)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL and not job.own.exists()
    size = job.part.stat().st_size
    assert body.startswith(job.part.read_bytes()) and size < len(body)
    server.slow = 0.0
    assert shop.install(WEIGHTS) == "downloaded"
    assert server.log == [None, f"bytes={size}-"]
    assert job.own.read_bytes() == body and leftovers(shop.folder) == []


KILLED_AT = """
import os, pathlib, signal, sys, zipfile
import download

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

for module, name in ((os, "replace"), (os, "rename"), (os, "unlink"), (os, "rmdir"),
                     (pathlib.Path, "unlink"), (zipfile.ZipFile, "_extract_member")):
    wrap(module, name)
sys.exit(download.main(download.parse(sys.argv[2:])))
"""


@pytest.mark.parametrize("merged", [True, False])
def test_kill_at_every_step_then_again(server, tmp_path, merged):
    """Killed before each step that writes, renames or removes: what is in place is whole."""
    images = dict(list(IMAGES.items())[:2])
    expected = images | ({"mine.png": b"mine"} if merged else {})
    server.files = {"SegmentationClassAug.zip": make_zip(images)}
    for step in range(1, 100):
        shop = Shop(server, tmp_path / str(step))
        goal = shop.job(MASKS).place
        if merged:  # the files are moved one by one
            goal.mkdir(parents=True)
            (goal / "mine.png").write_bytes(b"mine")
        status = subprocess.run(
            [sys.executable, "-c", KILLED_AT, str(step), *shop.arguments("masks")],
            cwd=ROOT, capture_output=True, timeout=60).returncode
        assert status in (0, -signal.SIGKILL)
        found = contents(goal)
        assert found.items() <= expected.items() and (merged or found in ({}, images))
        shop.install(MASKS)
        assert contents(goal) == expected and leftovers(shop.folder) == []
        assert "Aug.zip" in (shop.folder / "checkpoints/SHA256SUMS.json").read_text()
        if status == 0:
            break
    assert step > 10 and status == 0


def test_half_of_an_archive_does_not_count_as_all_of_it(shop, monkeypatch):
    """Not even where as many files lie as it should have at least."""
    asset = MASKS._replace(counts={"*.png": 2})

    def move_two(source: Path, target: Path) -> None:
        target.mkdir(parents=True)
        for path in sorted(source.iterdir())[:2]:
            path.rename(target / path.name)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(store, "merge", move_two)
        with pytest.raises(KeyboardInterrupt):
            shop.install(asset, MASKS_ZIP)
    goal = shop.job(asset).place
    assert len(contents(goal)) == 2 and not shop.job(asset).is_done()
    shop.install(asset)
    assert contents(goal) == IMAGES and shop.job(asset).is_done()


def test_two_processes_at_once_share_the_work(server, shop):
    server.files, server.slow = {"SegmentationClassAug.zip": MASKS_ZIP}, 0.5
    processes = [shop.start("masks") for _ in range(2)]
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0] and len(server.log) == 1
    assert sum("already there" in out for out in outputs) == 1
    assert contents(shop.job(MASKS).place) == IMAGES


def test_ctrl_c_ends_with_a_clean_line(server, shop):
    server.files, server.slow = {"DRS_learnable.pth": CHECKPOINT * 9}, 0.05
    process = shop.start("drs")
    wait_until(shop.job(WEIGHTS).part.exists)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted: run the same command again" in err and "Traceback" not in err


def test_a_full_disk_costs_no_second_transfer(server, shop, monkeypatch):
    def no_space(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files, "DISK_MARGIN", 1 << 60)
    shop.refusal(MASKS, "no room for 0.00 GB, make some", MASKS_ZIP)
    assert shop.job(MASKS).part.stat().st_size == 0
    monkeypatch.undo()
    with monkeypatch.context() as full:
        full.setattr(shutil, "copyfileobj", no_space)
        shop.refusal(MASKS, "No space left on device")
    assert shop.job(MASKS).part.exists() and not [*shop.job(MASKS).work.glob("*.unpack")]
    (shop.job(MASKS).work / "x.unpack/deep").mkdir(parents=True)  # of another that was killed
    shop.install(MASKS)
    assert len(server.log) == 2 and contents(shop.job(MASKS).place) == IMAGES
    assert leftovers(shop.folder) == []


def test_each_item_is_the_file_of_its_name():
    files = {name: [asset.url.rpartition("/")[2] for asset in assets]
             for name, (_, assets) in PAPER.items()}
    assert files == {
        "voc2012": ["VOCtrainval_11-May-2012.tar"], "masks": ["SegmentationClassAug.zip"],
        "saliency": ["saliency_map.zip"],
        "lists": ["train_aug_cls.txt", "train_cls.txt", "val_cls.txt"],
        "drs": ["DRS_learnable.pth"], "refine": ["Refine_DRS_learnable.pth"],
        "pseudo-labels": ["refined_pseudo_segmentation_labels.zip"],
        "deeplab-init": ["deeplabv1_resnet101-coco.pth"],
        "deeplab": ["Deeplabv2_pseudo_segmentation_labels.pth"]}
