"""The results of a run: which there are, what they are called, and their scores.

In: RUN_DIR, finished or not. Out: plain values for table and page. Files that are missing
are left out; files that are broken are left out with a warning: a report shows what there is.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.logging import get_logger

log = get_logger()
SHOWN = ("miou", "precision", "recall", "pixel_accuracy")  # the scores in the tables


@dataclass(frozen=True)
class Result:
    """A row of the table of scores: RUN_DIR/scores/KEY.json and the files that were scored.

    Attributes:
        maps: whether the files are localization maps, not labels.
    """

    key: str
    title: str
    layer: str
    folder: str
    maps: bool
    text: str


# In the order of the data.
RESULTS = (
    Result("cam", "plain CAM (no DRS)", "CAM without DRS", "cam_maps", True,
           "The baseline: the class activation maps of a classifier with ordinary ReLUs."),
    Result("fixed", "DRS, fixed control", "CAM with fixed DRS", "fixed_maps", True,
           "For comparison: step 1 with a constant as the control, where DRS has the learned one."),
    Result("drs", "DRS", "CAM with DRS", "localization_maps", True,
           "Step 1: the maps of the same classifier, its most discriminative regions suppressed."),
    Result("refined", "DRS + refinement", "refined map", "refined_maps", True,
           "Step 2: the maps of the network that learned from all DRS maps together."),
    Result("pseudo_labels", "pseudo labels", "pseudo label", "pseudo_labels", False,
           "Step 3: what DeepLab is trained on. Pixels left open count as wrong here."),
    Result("deeplab", "DeepLab-V2", "DeepLab-V2", "deeplab_labels", False,
           "The segmentation network trained on the pseudo labels, on images it never saw."),
    Result("deeplab_crf", "DeepLab-V2 + CRF", "DeepLab-V2 + CRF", "deeplab_crf_labels", False,
           "The same, sharpened along the borders in the image."),
)


def read_json(path: Path, kind: type) -> Any:
    """The value in a JSON file, or an empty `kind` where the file is missing or holds no such."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return kind()
    except (OSError, ValueError, RecursionError) as error:
        log.warning("left out: %s: %s", path, error)
        return kind()
    if not isinstance(value, kind):
        log.warning("left out: %s: not what the report expects", path)
        return kind()
    return value


def read_scores(run: Path) -> dict[str, dict[str, Any]]:
    """Key of a result -> what RUN_DIR/scores/KEY.json says, for those that are there and whole."""
    found = {}
    for result in RESULTS:
        scores = read_json(run / "scores" / f"{result.key}.json", dict)
        if scores and all(is_number(scores.get(key)) for key in SHOWN):
            found[result.key] = scores
        elif scores:
            log.warning("left out: %s: no scores in it", run / "scores" / f"{result.key}.json")
    return found


def score_table(scores: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The scores as a Markdown table; None where there are none."""
    lines = ["| result | images | mIoU | precision | recall | pixel accuracy |",
             "| --- | --- | ---: | ---: | ---: | ---: |"]
    for result in RESULTS:
        if result.key in scores:
            found = scores[result.key]
            numbers = " | ".join(f"{100 * found[key]:.1f}" for key in SHOWN)
            lines.append(f"| {result.title} | {found.get('images', '?')} of "
                         f"{found.get('list', '?')} | {numbers} |")
    return "\n".join(lines) if scores else None


def score_rows(scores: Mapping[str, Mapping[str, Any]], classes: list[str]
               ) -> list[dict[str, Any]]:
    """The rows of the table, each with IoU per label and the sweep over alpha where it has them."""
    rows = []
    for result in RESULTS:
        found = scores.get(result.key)
        if found is None:
            continue
        per_class, pixels = found.get("class_iou"), found.get("class_pixels")
        fits = all(isinstance(values, list) and len(values) == len(classes) + 1
                   and all(map(is_number, values)) for values in (per_class, pixels))
        sweep = found.get("sweep")
        rows.append({
            "key": result.key, "title": result.title, "text": result.text,
            "images": found.get("images"), "list": found.get("list"), "alpha": found.get("alpha"),
            **{key: found[key] for key in SHOWN},
            # A class that is in no mask has no IoU.
            "class_iou": [iou if there else None for iou, there in
                          zip(per_class or [], pixels or [], strict=True)] if fits else None,
            "sweep": [point for point in sweep if isinstance(point, dict) and all(
                is_number(point.get(key)) for key in ("alpha", "miou", "precision", "recall"))]
            if isinstance(sweep, list) else []})
    return rows


def is_number(value: Any) -> bool:
    """Whether a value from JSON is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
