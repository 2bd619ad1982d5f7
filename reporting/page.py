"""From values to one HTML file that needs nothing else: no server, no network, no other file.

In: the values that page.html shows and the data that its scripts explore. Out: the file, written
atomically. Names come from strangers: Jinja2 escapes them in the text, the data stand in the page
as JSON without a single "<", and the page's own policy lets no script run but ours and nothing be
fetched from anywhere.
"""

import base64
import hashlib
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from labelling.labels import voc_palette
from labelling.rule import CONFLICT_COUNT, CONFLICT_SCORE
from utils.files import atomic_write
from utils.logging import get_logger

log = get_logger()
HERE = Path(__file__).parent
SCRIPTS = ("rule.js", "charts.js", "explorer.js", "page.js")  # in the order in which they are used
MEGABYTE = 1e6
LARGE = 25  # megabytes from which on a page is hard to send


def write_page(path: Path, context: Mapping[str, Any], data: Mapping[str, Any]) -> None:
    """Fill page.html and write it to `path`; its size is logged.

    Args:
        context: what the template shows.
        data: what the scripts use, in JSON's types.
    """
    environment = Environment(loader=FileSystemLoader(HERE), autoescape=True,
                              undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"percent": percent, "thousands": thousands, "day": day}
    script = "\n".join((HERE / name).read_text(encoding="utf-8") for name in SCRIPTS)
    script = f'"use strict";\n(() => {{\n{script}\n}})();'
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    html = environment.get_template("page.html").render(
        **context, script=Markup(script), script_hash=digest, data={
            "palette": voc_palette().hex(),
            "rule": {"conflictScore": CONFLICT_SCORE, "conflictCount": CONFLICT_COUNT}, **data},
        style=Markup((HERE / "page.css").read_text(encoding="utf-8")))
    with atomic_write(path) as tmp:
        tmp.write_text(html, encoding="utf-8")
    size = path.stat().st_size / MEGABYTE
    log.info("wrote %s (%.1f MB, %d images)", path, size, len(data["images"]))
    if size > LARGE:
        log.warning("%s is large: with fewer images it is easier to send", path)


def percent(value: float) -> str:
    """A share as percent with one decimal."""
    return f"{100 * value:.1f}"


def thousands(value: object) -> str:
    """A whole number with its thousands set apart; anything else as it is."""
    return f"{value:,}" if isinstance(value, int) else str(value)


def day(timestamp: float) -> str:
    """A time as day and minute, in local time."""
    return datetime.fromtimestamp(timestamp).strftime("%d %B %Y, %H:%M").lstrip("0")
