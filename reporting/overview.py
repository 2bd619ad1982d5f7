"""The page of a run: report.html.

In: a run folder, finished or not, its data root, and the lists to show images of. Out: one HTML
file with the run's settings, stages, scores, curves, and images to explore.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets.layout import DataRoot
from reporting.page import write_page
from reporting.pictures import Gallery, choose, readable
from reporting.run import RESULTS, read_scores, score_rows
from reporting.stages import read_curves, read_stages
from utils.files import UserError
from utils.logging import get_logger, progress
from utils.threads import ordered_map

log = get_logger()
PAPER_ALPHA = 0.2


def write_report(run: Path, output: Path, root: DataRoot, lists: Sequence[str], count: int) -> Path:
    """Write the page of a run to OUTPUT/report.html.

    Args:
        lists: images of each of these are shown; a list that does not exist is left out.
        count: images of each list, besides the best and the worst ones.

    Returns:
        The file.
    """
    scores, stages = read_scores(run), read_stages(run)
    rows, curves = score_rows(scores, root.classes), read_curves(run)
    masks, saliency = (folder if folder.is_dir() else None
                       for folder in (root.mask_dir, root.saliency_dir))
    layers = [(result, run / result.folder) for result in RESULTS
              if (run / result.folder).is_dir()]
    alphas = {result.key: _alpha(scores.get(result.key, {})) for result in RESULTS if result.maps}
    chosen = choose_images(root, lists, count, scores)
    gallery = Gallery(root, layers, masks, saliency, alphas)
    records = [record | {"id": readable(record["id"]), "list": readable(chosen[record["id"]])}
               for record in progress(ordered_map(gallery, chosen), "pictures", len(chosen),
                                      "image") if record is not None]
    kinds = [{"key": "image", "title": "image", "kind": "image"},
             *({"key": result.key, "title": result.layer, "result": result.title,
                "kind": "maps" if result.maps else "labels"} for result, _ in layers),
             {"key": "mask", "title": "mask", "kind": "labels"}]
    path = output / "report.html"
    write_page(path, {
        "kind": "run", "title": readable(run.resolve().name), "written": time.time(),
        "stages": stages, "facts": facts(stages), "rows": rows, "masks": masks is not None,
        "classes": len(root.classes), "swept": any(row["sweep"] for row in rows),
        "curves": bool(curves), "lists": sorted({record["list"] for record in records}),
        "images": len(records), "found": []}, {
        "labels": ["background", *root.classes], "rows": rows, "curves": curves,
        "alpha": next(iter(alphas.values())), "layers": kinds, "images": records,
        "lists": sorted({record["list"] for record in records})})
    return path


def choose_images(root: DataRoot, lists: Sequence[str], count: int,
                  scores: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Ids of the images to show -> the list that each is from."""
    per_image: dict[str, float] = {}
    for result in RESULTS:  # of an image that several results have, the last in the chain counts
        found = scores.get(result.key, {}).get("per_image")
        if isinstance(found, dict):
            per_image |= {image_id: value for image_id, value in found.items()
                          if isinstance(value, (int, float))}
    chosen: dict[str, str] = {}
    for name in dict.fromkeys(lists):
        try:
            entries = root.entries(name, labels=False)
        except UserError as error:
            log.warning("no images of %s in the report: %s", name, error)
            continue
        for image_id in choose([entry.id for entry in entries], count, per_image):
            chosen.setdefault(image_id, name)
    return chosen


def facts(stages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """When and on what the stages ran: "began", "devices", "versions"."""
    began = [stage["began"] for stage in stages if stage["began"]]
    versions: dict[str, list[str]] = {}
    for stage in stages:
        for name, version in stage["versions"].items():
            if str(version) not in versions.setdefault(str(name), []):
                versions[str(name)].append(str(version))
    return {"began": min(began) if began else None,
            "devices": list(dict.fromkeys(str(stage["device"]) for stage in stages
                                          if stage["device"])),
            "versions": {name: ", ".join(found) for name, found in versions.items()}}


def _alpha(scores: Mapping[str, Any]) -> float:
    alpha = scores.get("alpha")
    return float(alpha) if isinstance(alpha, (int, float)) else PAPER_ALPHA
