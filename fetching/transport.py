"""Fetch one file over HTTP: streamed, retried, and resumed, also by a later run.

In: a URL and the path of an unfinished file. Out: that file, complete. Beside it lies what the
server said of it, so that bytes are only ever added to those of the same version.
"""

import time
from pathlib import Path
from typing import IO
from urllib.parse import urljoin

import requests

from utils.files import UserError, check_room, read_json, write_json
from utils.logging import get_logger, progress

BLOCK = 1 << 15  # bytes read at once, and the most that a broken connection loses
BACKOFF, MAX_DOUBLINGS = 1.0, 6  # seconds before the second attempt, doubled for each further one
PASSING = {408, 425, 429, 500, 502, 503, 504}  # HTTP statuses
BROKEN = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)


class DownloadError(UserError):
    """The file could not be had, or is not what it should be; the message gives the reason."""


def fetch(url: str, part: Path, retries: int, timeout: float) -> None:
    """Complete `part`, while the caller holds a lock; `part`.json says of what it is a part.

    A connection without a byte for `timeout` seconds counts as broken. When `retries` attempts in
    a row bring nothing, after the first, a DownloadError is raised; what has arrived is kept.
    """
    with open(part, "ab") as file:
        failures, most = 0, file.tell()
        while True:
            try:
                return _receive(url, file, timeout)
            except (requests.RequestException, ValueError) as error:  # ValueError: malformed URL
                failures = 1 if file.tell() > most else failures + 1
                most = max(most, file.tell())
                reason: BaseException = error
                while reason.__context__:  # what lies below the libraries' own errors says most
                    reason = reason.__context__
                if not isinstance(error, BROKEN) or failures > retries:
                    raise DownloadError(f"{reason} (gave up after {failures} x)") from error
            get_logger().warning("%s: %s; retry %d of %d", part.stem, reason, failures, retries)
            time.sleep(BACKOFF * 2 ** min(failures - 1, MAX_DOUBLINGS))


def _receive(url: str, file: IO[bytes], timeout: float) -> None:
    """Complete `file` by one request; another one may do where an error of BROKEN is raised."""
    record, offset, rest = Path(f"{file.name}.json"), file.tell(), ""
    facts = read_json(record)
    size, validator = facts.get("size", 0), facts.get("validator")
    headers = {"Accept-Encoding": "identity", "User-Agent": "drs-download/2.0"}
    if offset and facts.get("url") == url:
        if offset == size:
            return
        if validator:
            rest = f"bytes {offset}-{size - 1}/{size}"
            headers |= {"Range": f"bytes={offset}-", "If-Range": validator}
    with requests.get(url, headers=headers, timeout=timeout, stream=True,
                      hooks={"response": _judge_redirect}) as response:
        status, said = response.status_code, response.headers
        if status not in (200, 206, 416):
            raise (requests.ConnectionError if status in PASSING else requests.RequestException)(
                f"HTTP {status}")
        etag = said.get("ETag", "")
        version = etag if etag.startswith('"') else said.get("Last-Modified", "")
        if status == 200 or said.get("Content-Range") != rest or version not in ("", validator):
            file.seek(file.truncate(0))  # before the new facts come: versions are never mixed
            if status != 200:
                raise requests.ConnectionError("the server has another file now; starting afresh")
            size = int(said.get("Content-Length", -1))
            if size < 0 or said.get("Content-Encoding", "identity") != "identity":
                raise DownloadError("the server does not say how long the file is")
            validator = version if version.isascii() else ""
            write_json(record, {"url": url, "size": size, "validator": validator})
        missing = size - file.tell()
        check_room(record.parent, missing)
        for block in progress(response.iter_content(BLOCK), record.stem, missing // BLOCK, "block"):
            file.write(block)
            if file.tell() > size:
                break
    if file.tell() != size:
        raise requests.ConnectionError(f"{file.tell():,} of {size:,} bytes came")


def _judge_redirect(response: requests.Response, **_: object) -> None:
    """Before a redirect is followed: never from https to http."""
    if response.is_redirect:
        response.close()  # else its body would be read, however long
        target = urljoin(response.url, response.headers["Location"])
        if response.url.startswith("https:") and not target.startswith("https:"):
            raise DownloadError(f"refused the redirect to {target!r}")
