"""The stages of a run: what ran when, for how long, on what and with which settings.

In: the records (RUN_DIR/logs/*.json), metrics.json of the trainings and the folders that the stages
write. Out: plain values for the page. A run may be unfinished and records may lack fields.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reporting.run import is_number, read_json
from utils.logging import duration

# Stage -> (title, folder of the images it makes). Its record is RUN_DIR/logs/STAGE.json; those of
# DeepLab's train, test and crf lie in RUN_DIR/deeplab.
STAGES = {
    "pretrain": ("Pretraining", ""),
    "cam": ("Plain classifier", ""),
    "cam_maps": ("Plain CAM", "cam_maps"),
    "fixed": ("Fixed DRS", ""),
    "fixed_maps": ("Fixed DRS maps", "fixed_maps"),
    "classifier": ("DRS classifier", ""),
    "localization_maps": ("DRS maps", "localization_maps"),
    "refine": ("Refinement", ""),
    "pseudo_labels": ("Pseudo labels", "pseudo_labels"),
    "train": ("DeepLab-V2", ""),
    "test": ("Prediction", "deeplab_labels"),
    "crf": ("CRF", "deeplab_crf_labels"),
}
DEEPLAB = ("train", "test", "crf")
# Options that say where and how fast, not what: no difference from the paper's run.
MACHINE = {"data_root", "run_dir", "output_dir", "checkpoint", "device", "amp", "num_workers",
           "overwrite", "save_maps", "saliency_dir", "compile", "EXP.ID", "EXP.OUTPUT_DIR",
           "DATASET.ROOT", "DATASET.LABEL_DIR", "DATASET.MASK_DIR", "RUN.DEVICE", "RUN.AMP",
           "RUN.NUM_WORKERS", "EVAL.SAVE_LOGITS"}


def read_stages(run: Path) -> list[dict[str, Any]]:
    """The stages that have begun, in the order of the chain.

    Each has title, facts (texts), open (whether it is known to be unfinished), settings (texts of
    those that differ from the paper's), versions and, where known, device and began (seconds since
    1970).
    """
    stages = []
    for key, (title, folder) in STAGES.items():
        record = _record(run, key)
        made = sum(1 for _ in (run / folder).glob("[!.]*.png")) if folder else 0
        history = read_history(_history_file(run, key))
        if not (record.get("began") or made or history):
            continue
        options, step = record["options"], _step(record["options"], key)
        # Those of a training's epochs, for it may have gone on after an interruption.
        seconds: Any = sum(row.get("seconds", 0) for row in history) or record.get("seconds")
        images = record["images"] if is_number(record.get("images")) else made
        planned = None if folder else options.get("epochs" if step == 1 else "SOLVER.ITER_MAX")
        unit, done = "epochs" if step == 1 else "iterations", len(history) * step
        unfinished = False
        if isinstance(planned, (int, float)) and is_number(planned):
            done = min(done, int(planned))  # the last stretch of iterations may be shorter
            unfinished = done < planned
        facts = [duration(seconds) if is_number(seconds) else "",
                 f"{done} of {planned} {unit}" if unfinished else f"{done} {unit}" if done else "",
                 f"{images:,} images" if images else ""]
        stages.append({
            "title": title, "facts": [fact for fact in facts if fact], "open": unfinished,
            "settings": settings(record), "versions": record["versions"],
            "device": record.get("device"), "began": record.get("began")})
    return stages


def read_curves(run: Path) -> list[dict[str, Any]]:
    """The history of every training: key, title, x ("epoch" or "iteration"), points (dicts of x,
    loss, lr and, where there was a validation, miou)."""
    trainings = [(key, title) for key, (title, _) in STAGES.items()]
    trainings += sorted((path.parent.name, path.parent.name) for path in run.glob("*/metrics.json")
                        if path.parent.name not in STAGES)
    curves = []
    for key, title in trainings:
        history = read_history(_history_file(run, key))
        if not history:
            continue
        step = _step(_record(run, key)["options"], key)
        curves.append({
            "key": key, "title": title, "x": "iteration" if step != 1 else "epoch",
            "points": [{"x": row["epoch"] * step, **{
                name: row[name] for name in ("loss", "lr", "miou") if name in row}}
                for row in history]})
    return curves


def read_history(path: Path | None) -> list[dict[str, float]]:
    """The epochs in a metrics.json, with those of their figures that are finite numbers."""
    rows = read_json(path, list) if path is not None else []
    figures = [{name: value for name, value in row.items() if is_number(value)}
               for row in rows if isinstance(row, dict)]
    return [row for row in figures if "epoch" in row]


def settings(record: Mapping[str, Any]) -> list[str]:
    """The options of a stage that differ from the paper's, as "name value".

    A record without "defaults" does not tell which those are: then it is what stands on its
    command line.
    """
    options, defaults = record.get("options"), record.get("defaults")
    if not isinstance(options, dict):
        return []
    if isinstance(defaults, dict):
        names = [name for name in options if options[name] != defaults.get(name)]
    else:
        command = record.get("command")
        words = map(str, command if isinstance(command, list) else [])
        given = {word.partition("=")[0].removeprefix("--").replace("-", "_") for word in words}
        names = [name for name in options if name in given]
    return [f"{name} {_text(options[name])}" for name in names if name not in MACHINE]


def _record(run: Path, key: str) -> dict[str, Any]:
    """The newest record of a stage, with "options" and "versions"; else empty but for these."""
    paths = sorted(run.glob(f"deeplab/logs/*/{key}.json" if key in DEEPLAB else
                            f"logs/{key}.json"), key=lambda path: path.stat().st_mtime)
    record = read_json(paths[-1], dict) if paths else {}
    if record and not is_number(record.get("began")):
        record["began"] = paths[-1].stat().st_mtime
    for name in ("options", "versions"):
        if not isinstance(record.get(name), dict):
            record[name] = {}
    return record


def _history_file(run: Path, key: str) -> Path | None:
    if key != "train":
        return run / key / "metrics.json"
    found = sorted(run.glob("deeplab/models/*/*/*/metrics.json"),
                   key=lambda path: path.stat().st_mtime)
    return found[-1] if found else None


def _step(options: Mapping[str, Any], key: str) -> int:
    """What an "epoch" of a training counts for: DeepLab's are stretches of iterations."""
    step = options.get("SOLVER.ITER_SAVE")
    return step if key == "train" and isinstance(step, int) else 1


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
