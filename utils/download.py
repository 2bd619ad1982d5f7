"""Fetch one file over HTTP: resumed, retried, and under its name only when it is whole.

In: a URL, the path that the file shall have, and a check of its contents. Out: that path.
Until the check has passed the bytes lie in `NAME.part`, beside them in `NAME.part.json` what
the server said about the file, so that a later run, after whatever end of this one, goes on
where it stopped if the server still has the same file, and starts afresh if not.
"""

import http.client
import json
import os
import random
import re
import shutil
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TypeVar
from urllib.parse import urlsplit

from utils.files import UserError, write_json
from utils.logging import get_logger, progress

T = TypeVar("T")
MIB = 1 << 20
READ = 1 << 16  # bytes asked of the socket at once
DISK_MARGIN = 64 * MIB  # bytes to leave free
MAX_BYTES = 16 << 30  # no released file comes near
BACKOFF, MAX_BACKOFF = 1.0, 60.0  # seconds before the first and before any further attempt
TRANSIENT = {408, 425, 429, 500, 502, 503, 504}  # HTTP statuses that may pass
HEADERS = {"User-Agent": "drs-download/1.0", "Accept-Encoding": "identity"}


class DownloadError(UserError):
    """The file could not be fetched; the message gives the reason only."""


class UnreachableError(DownloadError):
    """No connection to the server could be made."""


class ContentError(DownloadError):
    """The file is not what it should be; raised by the caller's check."""


class _Retry(Exception):
    """This attempt failed, another may not."""

    def __init__(self, reason: str, wait: float = 0.0, unreachable: bool = False) -> None:
        super().__init__(reason)
        self.wait, self.unreachable = wait, unreachable


class _Redirect(urllib.request.HTTPRedirectHandler):
    """Follows redirects to http and https only, and never from https back to http."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):  # noqa: D102
        scheme = urlsplit(newurl).scheme
        if scheme not in ("http", "https") or (req.type == "https" and scheme == "http"):
            raise DownloadError(f"refused the redirect to {newurl}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class _Part:
    """The unfinished file: its bytes, and which file on which server they belong to."""

    def __init__(self, target: Path) -> None:
        self.path = target.with_name(f"{target.name}.part")
        self.facts_path = target.with_name(f"{target.name}.part.json")
        try:
            self.facts = dict(json.loads(self.facts_path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            self.facts = {}

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    @property
    def total(self) -> int | None:
        """The size of the whole file, as far as the server told."""
        return self.facts.get("size")

    def begin(self, url: str, validator: str | None, size: int | None) -> None:
        """Start afresh. The old bytes go before the new facts come: they never get mixed."""
        self.discard()
        self.note(url=url, validator=validator, size=size)

    def note(self, **facts: str | int | None) -> None:
        self.facts |= facts
        write_json(self.facts_path, self.facts)

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)
        self.facts_path.unlink(missing_ok=True)
        self.facts = {}

    def finish(self, target: Path) -> None:
        with open(self.path, "rb") as file:
            os.fsync(file.fileno())
        os.replace(self.path, target)
        self.facts_path.unlink(missing_ok=True)


def discard_partial(target: Path) -> None:
    """Remove what an unfinished download of `target` has left."""
    _Part(target).discard()


def fetch(url: str, target: Path, check: Callable[[Path], T], retries: int = 5,
          timeout: float = 60.0) -> T:
    """Download `url` to `target` and return what `check` said about the contents.

    `retries` counts attempts in a row that gain no new bytes; a stall is `timeout` seconds
    without a byte. One process at a time per target: the caller holds a lock.

    Raises:
        UnreachableError: no connection, after all retries.
        ContentError: `check` refused the file (again from scratch, if it was put together).
        DownloadError: any other reason with the server; what has arrived is kept.
        UserError: `target` cannot be written, or there is no room.
    """
    opener = urllib.request.OpenerDirector()
    for handler in (urllib.request.ProxyHandler(), urllib.request.HTTPHandler(),
                    urllib.request.HTTPSHandler(), urllib.request.HTTPDefaultErrorHandler(),
                    urllib.request.HTTPErrorProcessor(), _Redirect()):
        opener.add_handler(handler)
    part = _Part(target)
    failures, most = 0, part.size
    while True:
        try:
            resumed = _receive(opener, url, part, timeout)
            try:
                result = check(part.path)
            except ContentError as error:
                part.discard()
                if not resumed:
                    raise
                raise _Retry(f"{error}; starting afresh") from error
            part.finish(target)
            return result
        except _Retry as error:
            failures = 1 if part.size > most else failures + 1
            most = max(most, part.size)
            if failures > retries:
                kind = UnreachableError if error.unreachable else DownloadError
                raise kind(f"{error} (gave up after {failures} x)") from error
            pause = BACKOFF * 2 ** min(failures - 1, 10) * random.uniform(0.8, 1.2)
            pause = min(MAX_BACKOFF, max(pause, error.wait))
            get_logger().warning("%s: %s; retry %d of %d in %.1f s", target.name, error,
                                 failures, retries, pause)
            time.sleep(pause)
        except OSError as error:
            raise UserError(f"cannot write {target}: {error.strerror or error}") from error


def _receive(opener: urllib.request.OpenerDirector, url: str, part: _Part,
             timeout: float) -> bool:
    """Complete `part`, once; returns whether it was put together from several answers."""
    if part.size and (part.facts.get("url") != url or part.size > (part.total or MAX_BYTES)):
        part.discard()
    offset = part.size
    if offset and offset == part.total:  # only the check and the renaming were missing
        return True
    request = urllib.request.Request(url, headers=HEADERS)
    if offset:
        request.add_header("Range", f"bytes={offset}-")
        if part.facts.get("validator"):
            request.add_header("If-Range", part.facts["validator"])
    try:
        response = opener.open(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        with error:
            return _refused(error, part, offset)
    except urllib.error.URLError as error:
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            raise DownloadError(f"its certificate is not valid: {error.reason}") from error
        raise _Retry(f"no connection: {error.reason}", unreachable=True) from error
    except TimeoutError as error:
        raise _Retry(f"no answer within {timeout:g} s", unreachable=True) from error
    except (OSError, http.client.HTTPException) as error:
        raise _Retry(f"no proper answer: {error!r}") from error
    except ValueError as error:
        raise DownloadError(f"led to a malformed address: {error}") from error
    with response:
        _accept(response, url, part, offset)
        remaining = None if part.total is None else part.total - part.size
        check_room(part.path.parent, remaining or 0)
        name = part.path.stem
        with open(part.path, "ab") as file:
            blocks = _blocks(response, file, timeout)
            for _ in progress(blocks, desc=f"{name} (resumed)" if part.size else name,
                              total=remaining and remaining // MIB, unit="MiB"):
                pass
    if part.total is not None and part.size != part.total:
        raise _Retry(f"{part.size:,} of {part.total:,} bytes came")
    return response.status == 206


def _refused(error: urllib.error.HTTPError, part: _Part, offset: int) -> bool:
    """Deal with an HTTP error status; returns only if it means that `part` is complete."""
    if error.code == 416 and offset:
        match = re.fullmatch(r"bytes \*/(\d+)", error.headers.get("Content-Range", ""))
        if match and int(match[1]) == offset and part.total is None:
            return True
        announced = f"{part.total:,} bytes announced, " if part.total else ""
        part.discard()
        raise _Retry(f"{announced}but nothing after {offset:,}; starting afresh")
    reason = f"HTTP {error.code} {error.reason}"
    if error.code not in TRANSIENT:
        raise DownloadError(reason)
    wait = error.headers.get("Retry-After", "")
    raise _Retry(reason, wait=float(wait) if wait.isdecimal() else 0.0)


def _accept(response: http.client.HTTPResponse, url: str, part: _Part, offset: int) -> None:
    """Prepare `part` for the bytes of this answer: to go on, or (200) to start afresh."""
    headers = response.headers
    etag = headers.get("ETag", "")
    validator = etag if etag.startswith('"') else headers.get("Last-Modified")
    if headers.get("Content-Encoding", "identity") != "identity":
        raise DownloadError(f"the server sends it as {headers['Content-Encoding']}")
    if response.status == 206 and offset:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", headers.get("Content-Range", ""))
        total = int(match[2]) if match and match[2] != "*" else part.total
        if (match is None or int(match[1]) != offset or part.total not in (None, total)
                or validator not in (None, part.facts.get("validator"))):
            part.discard()
            raise _Retry("the server has another file now; starting afresh")
        part.note(size=total)
    elif response.status == 200:
        if response.length is None and not response.chunked:
            raise DownloadError("the server does not say how long the file is, so that a "
                                "broken one would go unnoticed")
        if (response.length or 0) > MAX_BYTES:
            raise DownloadError(f"the server announces {response.length:,} bytes")
        part.begin(url, validator, response.length)
    else:
        raise DownloadError(f"unexpected answer: HTTP {response.status} {response.reason}")


def check_room(folder: Path, needed: int) -> None:
    """Raise a UserError unless the disk of `folder` has room for `needed` bytes, and a rest."""
    free = shutil.disk_usage(folder).free
    if needed + DISK_MARGIN > free:
        raise UserError(f"it needs {needed / 1e9:.2f} GB, and {folder} has "
                        f"{free / 1e9:.2f} GB free: make room there")


def _blocks(response: http.client.HTTPResponse, file: IO[bytes], timeout: float) -> Iterator[None]:
    """Write the answer's body to `file`; yields once for each MiB."""
    pending = 0
    while True:
        try:
            chunk = response.read1(READ)  # what is there, without waiting for READ bytes
        except TimeoutError as error:
            raise _Retry(f"stalled: nothing came for {timeout:g} s") from error
        except (OSError, http.client.HTTPException) as error:
            raise _Retry(f"the connection broke: {error!r}") from error
        if not chunk:
            return
        file.write(chunk)
        if file.tell() > MAX_BYTES:
            raise DownloadError(f"the server sends more than {MAX_BYTES:,} bytes")
        pending += len(chunk)
        while pending >= MIB:
            pending -= MIB
            yield
