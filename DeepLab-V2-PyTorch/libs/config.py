"""The configuration: a YAML file and SECTION.KEY=VALUE overrides in, typed dataclasses out.

The defaults are the paper's (configs/voc12.yaml explains every key). A key that does not exist, a
value of another type or out of range is an error that names the key.
"""

import difflib
import math
import types
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from utils.files import UserError

# Relative paths in a configuration file start here; those on the command line where it is typed.
HERE = Path(__file__).resolve().parent.parent


def at_least(minimum: float, default: Any) -> Any:
    """A field whose value, or every value in its list, is `minimum` or more."""
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"minimum": minimum})
    return field(default=default, metadata={"minimum": minimum})


@dataclass(frozen=True)
class Exp:
    ID: str = "voc12"
    OUTPUT_DIR: Path = HERE / "data"
    SEED: int = at_least(0, 0)


@dataclass(frozen=True)
class Dataset:
    ROOT: Path | None = None
    LABEL_DIR: Path | None = None
    MASK_DIR: Path | None = None


@dataclass(frozen=True)
class Split:
    TRAIN: str = "train_aug"
    VAL: str = "val"


@dataclass(frozen=True)
class Image:
    MEAN: list[float] = at_least(0, [104.008, 116.669, 122.675])
    CROP: int = at_least(1, 321)
    SCALES: list[float] = at_least(0.01, [0.5, 0.75, 1.0, 1.25, 1.5])


@dataclass(frozen=True)
class Model:
    NAME: str = "deeplabv2_resnet101_msc"
    BLOCKS: list[int] = at_least(1, [3, 4, 23, 3])
    WIDTH: float = at_least(0.01, 1.0)
    ATROUS_RATES: list[int] = at_least(1, [6, 12, 18, 24])
    SCALES: list[float] = at_least(0.01, [0.5, 0.75])
    FREEZE_BN: bool = True
    INIT_MODEL: Path | Literal["imagenet", "none"] = "none"


@dataclass(frozen=True)
class Solver:
    ITER_MAX: int = at_least(1, 20000)
    BATCH_SIZE: int = at_least(1, 5)
    ITER_SIZE: int = at_least(1, 2)
    LR: float = at_least(0, 2.5e-4)
    ASPP_FACTOR: float = at_least(0, 10)
    LR_DECAY: int = at_least(1, 10)
    POLY_POWER: float = at_least(0, 0.9)
    MOMENTUM: float = at_least(0, 0.9)
    WEIGHT_DECAY: float = at_least(0, 5e-4)
    ONLINE_LABEL: Literal["official", "masked", "off"] = "official"
    ITER_SAVE: int = at_least(1, 500)


@dataclass(frozen=True)
class Eval:
    SAVE_LOGITS: bool = False


@dataclass(frozen=True)
class Crf:
    ITER_MAX: int = at_least(0, 10)
    POS_W: float = at_least(0, 3)
    POS_XY_STD: float = at_least(0.01, 1)
    BI_W: float = at_least(0, 4)
    BI_XY_STD: float = at_least(0.01, 67)
    BI_RGB_STD: float = at_least(0.01, 3)
    NEGLIGIBLE: float = at_least(0, 0.05)
    PROCESSES: int = at_least(0, 0)


@dataclass(frozen=True)
class Run:
    DEVICE: Literal["auto", "cpu", "cuda"] = "auto"
    AMP: Literal["auto", "bf16", "fp16", "off"] = "auto"
    NUM_WORKERS: int = at_least(0, 4)


@dataclass(frozen=True)
class Config:
    EXP: Exp
    DATASET: Dataset
    SPLIT: Split
    IMAGE: Image
    MODEL: Model
    SOLVER: Solver
    EVAL: Eval
    CRF: Crf
    RUN: Run

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Plain values, section by section, as YAML and checkpoints can hold them."""
        return {section: {key: str(value) if isinstance(value, Path) else value
                          for key, value in values.items()}
                for section, values in asdict(self).items()}


SECTIONS: dict[str, type] = get_type_hints(Config)
UNIONS = (Union, types.UnionType)
KEYS = {f"{section}.{option.name}": option
        for section, cls in SECTIONS.items() for option in fields(cls)}


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read `path` and apply `overrides` ("SECTION.KEY=VALUE", VALUE in YAML).

    Raises:
        UserError: the file is missing or no YAML; an unknown key (with the likeliest one meant),
            or a value of the wrong type or range. The message names file and key.
    """
    values: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
    for name, value in _read(path).items():
        section, key = name.split(".", 1)
        values[section][key] = _convert(name, value, f"{path}: ", HERE)
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals:
            raise UserError(f"{override!r}: an override has the form SECTION.KEY=VALUE")
        _known(name, "")
        section, key = name.split(".", 1)
        values[section][key] = _convert(name, _parse(text, override), "", Path.cwd())
    return Config(**{section: cls(**values[section]) for section, cls in SECTIONS.items()})


def _parse(text: str, source: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{source}: no valid YAML: {error}") from error


def _read(path: Path) -> dict[str, Any]:
    """The file's values by dotted name."""
    try:
        content = _parse(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"configuration {path}: cannot be read ({error})") from error
    found: dict[str, Any] = {}
    if not isinstance(content, dict | None):
        raise UserError(f"{path}: expected sections ({', '.join(SECTIONS)})")
    for section, options in (content or {}).items():
        if section not in SECTIONS:
            raise UserError(f"{path}: unknown section {section!r}"
                            + _hint(str(section), list(SECTIONS)))
        if not isinstance(options, dict | None):
            raise UserError(f"{path}: {section} must hold KEY: VALUE lines")
        for key, value in (options or {}).items():
            _known(f"{section}.{key}", f"{path}: ")
            found[f"{section}.{key}"] = value
    return found


def _known(name: str, source: str) -> None:
    if name not in KEYS:
        raise UserError(f"{source}unknown key {name}" + _hint(name, list(KEYS)))


def _hint(name: str, candidates: list[str]) -> str:
    close = difflib.get_close_matches(name.upper(), candidates, n=1)
    same_key = [other for other in candidates if other.endswith("." + name.split(".")[-1].upper())]
    meant = (same_key or close or [None])[0]
    return f"; did you mean {meant}?" if meant else f"; there are {', '.join(candidates)}"


def _convert(name: str, value: Any, source: str, base: Path) -> Any:
    section, key = name.split(".", 1)
    wanted = get_type_hints(SECTIONS[section])[key]
    try:
        value = _as_type(value, wanted, base)
    except TypeError:
        raise UserError(f"{source}{name} must be {_describe(wanted)}, got {value!r}") from None
    minimum = KEYS[name].metadata.get("minimum")
    if minimum is not None and any(item < minimum for item in
                                   (value if isinstance(value, list) else [value])):
        raise UserError(f"{source}{name} must be at least {minimum}, got {value!r}")
    return value


def _as_type(value: Any, wanted: Any, base: Path) -> Any:
    """`value` as `wanted`; TypeError if it is something else."""
    origin, choices = get_origin(wanted), get_args(wanted)
    if origin in UNIONS:
        # Paths last: any text is a path.
        for choice in sorted(choices, key=lambda choice: choice is Path):
            try:
                return _as_type(value, choice, base)
            except TypeError:
                continue
    elif origin is Literal:
        if value is False and "off" in choices:  # YAML reads a bare off as False
            return "off"
        if isinstance(value, str) and value in choices:
            return value
    elif origin is list:
        if isinstance(value, list) and value:
            return [_as_type(item, choices[0], base) for item in value]
    elif wanted is Path:
        if isinstance(value, str) and value:
            return base / Path(value).expanduser()
    elif wanted is float:
        if isinstance(value, str):  # PyYAML reads 1e-4 as text, for want of a point
            try:
                value = float(value)
            except ValueError:
                raise TypeError from None
        if type(value) in (int, float) and math.isfinite(value):
            return float(value)
    elif type(value) is wanted:
        return value
    raise TypeError


def _describe(wanted: Any) -> str:
    origin, choices = get_origin(wanted), get_args(wanted)
    if origin in UNIONS:
        return " or ".join(_describe(choice) for choice in choices if choice is not type(None))
    if origin is Literal:
        return " | ".join(choices)
    if origin is list:
        return f"a list, each item {_describe(choices[0])}"
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text",
            Path: "a path"}[wanted]
