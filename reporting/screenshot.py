"""A picture of a page, for a README or a talk: python -m reporting.screenshot PAGE.html OUT.png

In: a page that this package has written. Out: a PNG of its upper part, as Chromium shows it. Needs
Chromium with its driver on the PATH, and Selenium (requirements-dev.txt).
"""

import argparse
import base64
import io
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from utils.files import UserError, atomic_write, sweep_for

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
# No window, no services of the vendor's, nothing of the user's own browser.
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
         "--no-first-run", "--disable-sync", "--disable-component-update", "--hide-scrollbars",
         "--force-device-scale-factor=1", "--window-size=1280,900")
COLORS = 256  # of the PNG: a page has few, and its photos are small
TIMEOUT = 30.0  # seconds until a page must be ready


def missing() -> str | None:
    """What is not installed of what the browser needs, or None."""
    try:
        import selenium  # noqa: F401
    except ImportError:
        return "Selenium is not installed (pip install -r requirements-dev.txt)"
    if not (any(map(shutil.which, BROWSERS)) and shutil.which("chromedriver")):
        return "no Chromium with chromedriver on the PATH (Debian: chromium chromium-driver)"
    return None


@contextmanager
def browser() -> Iterator[Any]:
    """Selenium's driver of a fresh Chromium without a window; it logs console and network.

    Raises:
        UserError: something is missing.
    """
    if (reason := missing()) is not None:
        raise UserError(reason)
    from selenium import webdriver

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = next(filter(None, map(shutil.which, BROWSERS)))
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        driver = webdriver.Chrome(options=options,
                                  service=webdriver.ChromeService(shutil.which("chromedriver")))
        try:
            yield driver
        finally:
            driver.quit()


def open_page(driver: Any, page: Path) -> None:
    """Open a page and wait until its charts and its first image are drawn.

    Raises:
        UserError: there is no such page.
    """
    if not page.is_file():
        raise UserError(f"{page}: no such page")
    driver.get(page.resolve().as_uri())
    ready = ("return document.body.dataset.ready === 'yes' && "
             "(!document.getElementById('stage') || +document.body.dataset.drawn > 0)")
    end = time.monotonic() + TIMEOUT
    while not driver.execute_script(ready):
        if time.monotonic() > end:
            raise UserError(f"{page}: not drawn within {TIMEOUT:g} s")
        time.sleep(0.05)


def capture(driver: Any, width: int, height: int | None = None, dark: bool = False
            ) -> Image.Image:
    """The upper `height` pixels (None: all) of the open page, as it is at a width."""
    command = driver.execute_cdp_cmd
    command("Emulation.setEmulatedMedia", {"features": [
        {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]})
    command("Emulation.setDeviceMetricsOverride", {
        "width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500})
    whole = driver.execute_script("return document.documentElement.scrollHeight")
    picture = command("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": {
        "x": 0, "y": 0, "width": width, "height": height or whole, "scale": 1}})
    command("Emulation.clearDeviceMetricsOverride", {})
    return Image.open(io.BytesIO(base64.b64decode(picture["data"]))).convert("RGB")


def main() -> None:
    """Take the picture."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--width", type=int, default=1280, help="of the window, in pixels")
    parser.add_argument("--height", type=int, help="of the picture (default: the whole page)")
    parser.add_argument("--dark", action="store_true")
    args = parser.parse_args()
    try:
        with browser() as driver:
            open_page(driver, args.page)
            picture = capture(driver, args.width, args.height, args.dark)
        sweep_for(args.output)
        with atomic_write(args.output) as tmp:
            picture.quantize(COLORS, Image.Quantize.FASTOCTREE).save(tmp, "PNG", optimize=True)
    except UserError as error:
        sys.exit(f"error: {error}")
    print(f"{args.output}: {args.output.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
