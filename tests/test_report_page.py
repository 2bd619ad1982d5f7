"""The report in a real browser: it opens from a file, shows what Python computes, obeys keys.

Skipped where there is no Chromium with its driver, or no Selenium. Screenshots are kept below
.pytest_cache/d/screenshots.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import run_script, run_stage
from PIL import Image
from report_recipe import decode, make_run, page_data, write_training

from datasets.layout import DataRoot
from datasets.synthetic import generate
from labelling.labels import IGNORE, voc_palette
from labelling.maps import save_maps
from labelling.rule import background_scores, fuse
from reporting.predictions import write_index
from reporting.screenshot import browser, capture, missing, open_page

pytest.importorskip("selenium", reason="Selenium is not installed")
from selenium import webdriver  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import Select, WebDriverWait  # noqa: E402

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))
TIMEOUT = 30  # seconds
HOSTILE = "<img src=x onerror='window.hacked=1'>"


class Page:
    """A page in the browser."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def open(self, path: Path) -> None:
        for kind in ("browser", "performance"):
            self.driver.get_log(kind)  # empties it
        open_page(self.driver, path)
        self.url = self.driver.current_url

    def all(self, selector: str) -> list:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector: str):
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def drawn(self, action) -> None:
        """Do something and wait until the explorer has drawn what follows from it."""
        count = "return +document.body.dataset.drawn"
        before = self.driver.execute_script(count)
        action()
        WebDriverWait(self.driver, TIMEOUT).until(lambda d: d.execute_script(count) > before)

    def choose(self, name: str, value: str) -> None:
        self.drawn(lambda: Select(self.one(f"#{name}")).select_by_value(value))

    def slide(self, name: str, value: float) -> None:
        self.drawn(lambda: self.driver.execute_script(
            "const input = document.getElementById(arguments[0]); input.value = arguments[1];"
            "input.dispatchEvent(new Event('input'));", name, value))

    def press(self, *keys: str) -> None:
        webdriver.ActionChains(self.driver).send_keys(*keys).perform()

    def shown(self) -> str:
        return self.one("#name").text

    def pixels(self, layer: str) -> np.ndarray:
        """The canvas of a layer, (H, W, 4)."""
        return decode(self.driver.execute_script(
            "return arguments[0].toDataURL()", self.one(f"[data-layer={layer}] .layer")))

    def labels(self, layer: str) -> np.ndarray:
        """The labels whose colours a canvas shows; hatched pixels are 255."""
        palette = np.frombuffer(voc_palette(), np.uint8).reshape(256, 3)
        pixels = self.pixels(layer)
        labels = np.full(pixels.shape[:2], -1)
        labels[pixels[..., 3] == 0] = 0
        for label in range(1, 255):
            labels[(pixels[..., :3] == palette[label]).all(-1) & (pixels[..., 3] == 255)] = label
        for grey in (255, 96):
            labels[(pixels == [grey, grey, grey, 255]).all(-1)] = IGNORE
        assert (labels >= 0).all(), "a colour that is nobody's"
        return labels

    def complaints(self) -> list:
        """What stands on the console, and requests for anything but the page itself."""
        events = [json.loads(entry["message"])["message"]
                  for entry in self.driver.get_log("performance")]
        urls = [event["params"]["request"]["url"] for event in events
                if event["method"] == "Network.requestWillBeSent"]
        assert self.url in urls  # else nothing was looked at
        return self.driver.get_log("browser") + [
            url for url in urls if url != self.url and not url.startswith("data:")]


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    with browser() as driver:
        yield Page(driver)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> DataRoot:
    folder = tmp_path_factory.mktemp("page") / "data"
    generate(folder, num_classes=3, train=10, val=3, single=3, size=96, workers=1)
    return DataRoot(folder)


@pytest.fixture(scope="module")
def report(root: DataRoot, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a finished run."""
    folder = tmp_path_factory.mktemp("page") / "finished"
    make_run(root, folder)
    run_stage("report", "--data-root", root.root, "--run-dir", folder, "--list", "train_aug")
    return folder / "report.html"


@pytest.fixture(scope="module")
def data(report: Path) -> dict:
    return page_data(report)


def expected(image: dict, layer: str, alpha: float) -> np.ndarray:
    """The rule in Python, on the page's own numbers."""
    classes, size = image["layers"][layer]["classes"], tuple(image["size"])
    numbers = decode(image["layers"][layer]["numbers"]).reshape(len(classes), *size)
    salient = torch.from_numpy(decode(image["salient"])) if "salient" in image else None
    return fuse(torch.from_numpy(numbers).float() / 255, classes,
                background_scores(size, salient, alpha), alpha=alpha).numpy()


def test_it_opens_without_a_word_or_a_request(page, report):
    page.open(report)
    assert len(page.all("#thumbs button")) == 13
    assert [panel.get_attribute("data-layer") for panel in page.all(".panel")] == [
        "image", "cam", "drs", "refined", "pseudo_labels", "mask"]
    assert len(page.all(".chart")) == 3 + 3 * 3 and len(page.all(".class-card")) == 4
    assert page.complaints() == []


def test_the_slider_gives_what_the_rule_gives(page, report, data):
    """At alphas on the edge between two 8-bit numbers (0.2 and 0.4 are 51 and 102) and off it."""
    page.open(report)
    assert page.one("#alpha").get_attribute("value") == "0.2"
    for image in data["images"][:2]:
        assert page.shown() == image["id"]
        seen = []
        for alpha in (0.0, 0.2, 0.33, 0.4, 1.0):
            page.slide("alpha", alpha)
            for layer in ("cam", "drs", "refined"):
                labels = page.labels(layer)
                assert np.array_equal(labels, expected(image, layer, alpha)), (alpha, layer)
                seen.append(labels)
        assert len({labels.tobytes() for labels in seen}) > 6 and IGNORE in np.unique(seen)
        for layer in ("pseudo_labels", "mask"):
            assert np.array_equal(page.labels(layer), decode(image["layers"][layer]["numbers"]))
        page.drawn(lambda: page.press(Keys.ARROW_RIGHT))


def test_without_saliency_alpha_is_the_background(page, root, report, tmp_path):
    plain = Path(shutil.copytree(root.root, tmp_path / "data"))
    shutil.rmtree(plain / "saliency_map")
    shutil.rmtree(plain / "SegmentationClassAug")
    folder = tmp_path / "run"
    shutil.copytree(report.parent / "localization_maps", folder / "localization_maps")
    listed = plain / "train.txt"
    listed.write_text("".join(f"{path.stem}\n" for path in
                              sorted((folder / "localization_maps").glob("*.png"))))
    run_stage("report", "--data-root", plain, "--run-dir", folder, "--list", listed)
    found = page_data(folder / "report.html")
    page.open(folder / "report.html")
    # Without masks: the least sure first, and nothing that needs scores.
    assert page.one("#order").get_attribute("value") == "doubt"
    doubts = {image["id"]: image["doubt"] for image in found["images"]}
    assert doubts[page.shown()] == max(doubts.values())
    assert {option.get_attribute("value") for option in page.all("#order option")} == {
        "list", "doubt"}
    assert "need masks" in page.one("#alpha-sweep").text
    image = next(image for image in found["images"] if image["id"] == page.shown())
    for alpha in (0.05, 0.2, 0.4):
        page.slide("alpha", alpha)
        assert np.array_equal(page.labels("drs"), expected(image, "drs", alpha))
    assert page.complaints() == []


def thumbs(page: Page) -> list[str]:
    return [button.get_attribute("aria-label").split()[0] for button in page.all("#thumbs button")]


def test_sorting_and_filters(page, report, data):
    page.open(report)
    images = {image["id"]: image for image in data["images"]}
    page.choose("by", "drs")
    score = {name: image["layers"].get("drs", {}).get("miou") for name, image in images.items()}
    known = [name for name in images if score[name] is not None]
    page.choose("order", "worst")
    assert thumbs(page)[:len(known)] == sorted(known, key=score.get)
    assert len(thumbs(page)) == 13  # those without a score come last
    page.choose("order", "best")
    assert thumbs(page)[:len(known)] == sorted(known, key=lambda name: -score[name])
    page.choose("order", "gain")
    gain = {name: score[name] - images[name]["layers"]["cam"]["miou"] for name in known}
    assert thumbs(page)[:len(known)] == sorted(known, key=lambda name: -gain[name])
    page.choose("order", "worst")
    page.choose("label", "2")
    with_class = [name for name in images if 2 in images[name]["labels"]]
    assert sorted(thumbs(page)) == sorted(with_class)
    iou = {name: images[name]["layers"]["drs"]["iou"].get("2") for name in with_class
           if "drs" in images[name]["layers"]}
    ranked = sorted((name for name in iou if iou[name] is not None), key=iou.get)
    assert thumbs(page)[:len(ranked)] == ranked  # of the class, not of the image
    assert set(np.unique(page.labels("refined"))) <= {0, 2, 255}
    page.choose("label", "")
    page.choose("list", "val")
    assert sorted(thumbs(page)) == [name for name in images if images[name]["list"] == "val"]
    assert [panel.get_attribute("data-layer") for panel in page.all(".panel")] == [
        "image", "deeplab", "deeplab_crf", "mask"]


def test_the_classes(page, report, data):
    page.open(report)
    iou = data["rows"][-1]["class_iou"]
    names = [card.text for card in page.all(".class-card .link")]
    assert names == data["labels"]
    Select(page.one("#class-order")).select_by_value("worst")
    order = [card.text for card in page.all(".class-card .link")]
    known = [name for name in names if iou[names.index(name)] is not None]
    assert order[:len(known)] == sorted(known, key=lambda name: iou[names.index(name)])
    bars = len(page.all(".bar"))
    page.driver.execute_script("arguments[0].click()", page.all("#class-key button")[0])
    assert len(page.all(".bar")) == bars - 4
    Select(page.one("#class-by")).select_by_value("refined")
    link = next(link for link in page.all(".class-card .link") if link.text == names[3])
    page.drawn(lambda: page.driver.execute_script("arguments[0].click()", link))
    assert page.one("#label").get_attribute("value") == "3"
    assert page.one("#order").get_attribute("value") == "worst"


def test_keys(page, report, data):
    page.open(report)
    first, second = (image["id"] for image in data["images"][:2])
    page.drawn(lambda: page.press(Keys.ARROW_RIGHT))
    assert page.shown() == second
    page.drawn(lambda: page.press(Keys.ARROW_LEFT))
    page.press(Keys.ARROW_LEFT)  # there is none before
    assert page.shown() == first
    page.drawn(lambda: page.press("3"))
    assert [panel.get_attribute("data-layer") for panel in page.all(".panel")] == ["refined"]
    assert page.one("[data-value=over]").get_attribute("aria-pressed") == "true"
    before = page.pixels("refined")
    page.drawn(lambda: page.press("h"))
    assert not np.array_equal(before, page.pixels("refined"))  # heat instead of labels
    page.drawn(lambda: page.press("+"))
    assert page.one("#alpha-value").text == "0.21"
    page.drawn(lambda: page.press(Keys.ESCAPE))
    assert len(page.all(".panel")) == 6
    page.drawn(lambda: page.press("h"))
    # The pixel under the cross: what the canvas shows there, in words and with its score.
    image, (height, width) = data["images"][0], data["images"][0]["size"]
    page.drawn(lambda: page.press("-"))
    for _ in range(5):
        webdriver.ActionChains(page.driver).key_down(Keys.SHIFT).send_keys(
            Keys.ARROW_DOWN).key_up(Keys.SHIFT).perform()
    row, column = (height >> 1) + 5 * max(1, round(width / 80)), width >> 1
    label = expected(image, "cam", 0.2)[row, column]
    classes = image["layers"]["cam"]["classes"]
    scores = decode(image["layers"]["cam"]["numbers"]).reshape(len(classes), height, width)
    text = page.one("[data-layer=cam] .read").text
    assert text.startswith("ignored" if label == IGNORE else data["labels"][label])
    top = scores[:, row, column].max()
    assert text.endswith(f"{top / 255:.2f}" if top else "no score")
    # A chart takes the arrows for itself.
    chart = page.one(".chart")
    page.driver.execute_script("arguments[0].focus()", chart)
    page.press(Keys.ARROW_RIGHT)
    page.press(Keys.ARROW_RIGHT)
    assert chart.find_element(By.CSS_SELECTOR, ".values b").text == "alpha 0.05"
    assert page.shown() == first


def test_layers_over_another(page, report, data):
    page.open(report)
    page.drawn(lambda: page.press("4"))
    page.choose("base", "mask")
    page.slide("opacity", 0.5)
    assert page.one("[data-layer=pseudo_labels] .layer").value_of_css_property("opacity") == "0.5"
    assert page.one("[data-layer=pseudo_labels] .under").is_displayed()


def test_a_hostile_name_does_nothing(page, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    Image.new("RGB", (30, 20)).save(folder / f"{HOSTILE}.png")
    (folder / "classes.txt").write_text("</script><script>window.hacked=1</script>\n<b>dog</b>\n")
    (folder / "all.txt").write_text(f"{HOSTILE}.png\n")
    run = tmp_path / "<i>run & 'more'"
    (run / "localization_maps").mkdir(parents=True)
    save_maps(run / "localization_maps" / f"{HOSTILE}.png", np.full((1, 8, 8), 200, np.uint8), [0])
    write_training(run, HOSTILE.replace("/", ""), 2, 2)
    run_stage("report", "--data-root", folder, "--run-dir", run, "--list", "all")
    page.open(run / "report.html")
    assert page.shown() == HOSTILE and page.one("h1").text == run.name
    assert "window.hacked" in page.one("#legend").text
    assert page.driver.execute_script("return window.hacked === undefined")
    assert len(page.all("script")) == 2 and page.all("#name img") == page.all("h1 i") == []
    assert page.complaints() == []


def test_an_unfinished_run_opens(page, root, tmp_path):
    for done in (0, 1, 3):
        folder = tmp_path / f"run{done}"
        folder.mkdir()
        write_training(folder, "classifier", epochs=15, done=done)
        run_stage("report", "--data-root", root.root, "--run-dir", folder, "--list", "train_aug")
        page.open(folder / "report.html")
        assert "No scores yet" in page.one("#scores").text
        assert len(page.all(".chart")) == (3 if done else 0)
        assert len(page.all("#thumbs button")) == 10
        assert page.complaints() == []


def test_predictions_open(page, root, report, tmp_path):
    shutil.copytree(report.parent / "deeplab_labels", tmp_path / "out")
    pictures = {entry.id: root.image(entry.id) for entry in root.entries("val")}
    page.open(write_index(tmp_path / "out", pictures, root.classes))
    assert len(page.all("#thumbs button")) == 3 and len(page.all("#found tbody tr")) >= 1
    assert [panel.get_attribute("data-layer") for panel in page.all(".panel")] == [
        "image", "labels", "plain"]
    assert np.array_equal(page.labels("labels"), page.labels("plain"))
    assert "%" in page.one("[data-layer=labels] .read").text
    assert page.complaints() == []


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_screenshots(page, report, request, width, scheme):
    folder = Path(request.config.cache.mkdir("screenshots"))
    page.open(report)
    picture = capture(page.driver, width, dark=scheme == "dark")
    picture.save(folder / f"report_{width}_{scheme}.png")
    assert picture.width == width and picture.height > 1500
    brightness = np.asarray(picture.convert("L").crop((0, 0, width, 40))).mean()
    assert (brightness < 60) == (scheme == "dark")


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_is_wider_than_the_window(page, report, width):
    page.open(report)
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {
        "width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500})
    for settings in ("details", "#over"):
        page.driver.execute_script("document.querySelector('details').open = true")
        assert page.driver.execute_script(
            "return document.documentElement.scrollWidth") <= width, settings
        page.drawn(lambda: page.press("4"))
    page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_picture_of_a_page(report, tmp_path):
    run_script("-m", "reporting.screenshot", report, tmp_path / "a.png", "--height", "700")
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size == (1280, 700)
    done = run_script("-m", "reporting.screenshot", tmp_path / "none.html", tmp_path / "b.png",
                      check=False)
    assert done.returncode == 1 and done.stderr.startswith("error: ") and "no such" in done.stderr
