"""Every option of every command arrives: changing it changes what it should, and nothing else.

A row of the table: commands | an option with another value | all that changes | what is given
besides, both times. What changes is named as in arrival.py; a word BEFORE->AFTER stands for files
at other places, with the same content. Not written down, as they follow from the option itself:

- an option that shapes the result changes `options.NAME` of the record, any changes `log.NAME`;
- where weights change, so may the scores in validation.

AGAIN: the command has run before, with what is given.
"""

import argparse
import os
import re
import shlex
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from arrival import Command, Places, changed, consumers, load, outcome
from helpers import ENVIRONMENT, ROOT

from libs.config import Config
from utils.options import StageParser

_ = consumers  # a fixture

DATA = "--data-root {demo} --run-dir {out}/run"
MACHINE = "--device cpu --amp off --num-workers 0"
TRAINING = (f"{DATA} {MACHINE} --epochs 1 --batch-size 2 --lr 0.01 --width 0.0625 --image-size 32 "
            "--init none")
LABELLING = f"{DATA} {MACHINE} --batch-size 4 --list train_aug"
MAIN = "DeepLab-V2-PyTorch/main.py"
CONFIG = "-c {config} EXP.OUTPUT_DIR={out}/deeplab"
DATASETS = "datasets.command"
COMMANDS = {
    "drs": Command("train_drs", TRAINING),
    "refine": Command("train_refine", f"{TRAINING} --maps-dir {{maps}}"),
    "maps": Command("make_localization_maps", f"{LABELLING} --checkpoint {{classifier}}"),
    "labels": Command("make_pseudo_labels", f"{LABELLING} --checkpoint {{refine}}"),
    "evaluate": Command("evaluate", f"{DATA} --list train_aug --labels-dir {{labels}} --name it"),
    "evaluate-maps": Command("evaluate", f"{DATA} --list train_aug --maps-dir {{maps}} --name it"),
    "report": Command("report", DATA, prepare="reported"),
    "export": Command("export_labels", "--data-root {demo} --labels-dir {labels} --format voc "
                      "--output-dir {out}/export"),
    "import": Command("export_labels", "--data-root {demo} --import-cvat {cvat} "
                      "--output-dir {out}/export"),
    "saliency": Command("make_saliency", f"{DATA} --device cpu --num-workers 0 --list train_aug "
                        "--model {onnx} --input-size 16"),
    "download": Command("download", "items:masks --data-root {out}/voc --checkpoint-dir {out}/nets "
                        "--mirror https://a.b/c"),
    "train": Command(MAIN, CONFIG, "train"),
    "test": Command(MAIN, f"{CONFIG} -m {{deeplab}} --labels-dir {{out}}/labels", "test"),
    "crf": Command(MAIN, f"{CONFIG} -m {{deeplab}} --labels-dir {{out}}/labels", "crf"),
    "predict": Command(MAIN, f"{CONFIG} -m {{deeplab}} --input {{demo}}/JPEGImages/val_000000.jpg "
                       "--output-dir {out}/labels", "predict"),
    "onnx": Command(MAIN, f"{CONFIG} -m {{deeplab}} --output {{out}}/net.onnx", "export"),
    "check": Command(DATASETS, "root:{demo} --num-workers 0", "check"),
    "make-list": Command(DATASETS, "root:{demo} --num-workers 0 --from-masks --output "
                         "{out}/list.txt", "make-list"),
    "masks": Command(DATASETS, "root:{coco} --num-workers 0 --output {out}/masks", "masks"),
    "plan": Command("datasets.plan", "root:{demo} --run-dir {out}/run"),
    "synthetic": Command("datasets.synthetic", "root:{out}/made --classes 2 --train 1 --val 1 "
                         "--single 1 --size 32", prepare="small"),
}

OTHER = "--backbone mobilenet_v2 --width 1 --image-size 64 --list train --val-list none"
OFFICIAL = "--checkpoint {official} --network classifier --drs fixed --delta 0.5"
THRESHOLD = "--background threshold"
TABLE = r"""
drs refine | --data-root {other} | images validation weights loss
drs refine | --list train | images weights loss
drs refine | --run-dir {out}/there | run->there log.output_dir
drs | --output-dir {out}/there | run/classifier->there
refine | --output-dir {out}/there | run/refine->there
drs refine | --overwrite | rewritten | AGAIN
drs refine maps labels saliency | --dry-run | files
evaluate evaluate-maps report | --dry-run | files printed
drs refine | --batch-size 4 | batch weights loss
drs refine | --seed 1 | generator order_seed sample_seed weights loss
drs refine maps labels saliency | --device cuda | refused: --device cuda: PyTorch sees no GPU
drs refine maps labels saliency | --device auto |
drs refine | --amp bf16 | options.precision weights loss
drs refine maps labels | --compile | compiled
drs refine maps labels saliency | --num-workers 1 | workers
drs refine | --epochs 2 | epochs weights
drs refine | --save-every 0.000001 | within
drs refine | --lr 0.02 | weights loss lr
drs refine | --milestones 1 | weights loss lr
drs refine | --weight-decay 0.5 | weights loss
drs | --image-size 40 | options.resize log.resize weights loss
refine | --image-size 40 | weights loss
drs refine | --init {classifier} | inputs.initial-weights weights loss
drs refine | --backbone regnet_y_400mf | weights loss | %(OTHER)s
drs refine | --output-stride 32 | weights loss | %(OTHER)s
drs | --drs-where features.1* | weights loss | %(OTHER)s
drs refine | --width 0.125 | weights loss
drs refine | --batch-norm | weights loss
drs refine | --val-list val | validation scores
drs refine | --alpha 1 | scores | --alpha 0
drs refine | --background threshold | validation scores | --alpha 0
drs | --background-score 1 | scores | %(THRESHOLD)s
refine | --background-score 0.000001 | scores | %(THRESHOLD)s --alpha 0
drs refine | --saliency-dir {saliency} | validation scores | --alpha 0
drs | --drs none | weights loss
drs | --delta 0.2 | weights loss | --drs fixed
drs | --resize 36 | weights loss
drs | --recalibrate | weights loss | --drs fixed --init {without}
refine | --maps-dir {maps2} | images inputs.localization-maps weights loss

maps labels | --data-root {other} | images pixels
maps labels | --list val | images files batch
maps labels | --run-dir {out}/there | run->there log.output_dir
maps | --output-dir {out}/there | run/localization_maps->there
labels | --output-dir {out}/there | run/pseudo_labels->there
maps labels | --overwrite | batch rewritten | AGAIN
maps labels saliency | --batch-size 3 | batch
maps labels saliency | --seed 1 | generator
maps labels | --amp bf16 | options.precision pixels
maps | --checkpoint {refine} | inputs.checkpoint pixels
labels | --checkpoint {classifier} | inputs.checkpoint pixels
maps labels | --network refine | pixels | %(OFFICIAL)s
maps labels | --drs none | pixels | %(OFFICIAL)s
maps labels | --delta 0.05 | pixels | %(OFFICIAL)s
maps labels | --image-size 64 | pixels
maps labels | --scales 0.5 | pixels
labels | --scales 0.5 | also.options.scales pixels | --save-maps {out}/saved
maps labels | --shard 1/2 | files
labels | --alpha 1 | pixels | --save-maps {out}/saved
labels | --background threshold | images pixels
labels | --background-score 1 | pixels | %(THRESHOLD)s
labels | --saliency-dir {saliency} | images pixels
labels | --no-ignore | pixels
labels | --save-maps {out}/saved | files

evaluate | --data-root {other} | scores printed
evaluate-maps | --data-root {other} | scores sweep printed
evaluate | --list train | scores said.list said.images printed
evaluate-maps | --list train | scores sweep said.list said.images printed
evaluate-maps | --list val | refused: missing
evaluate evaluate-maps | --run-dir {out}/there | run->there log.output_dir
evaluate evaluate-maps | --output-dir {out}/there | run/scores->there
evaluate evaluate-maps report | --overwrite |
evaluate | --labels-dir {labels2} | scores said.folder printed
evaluate-maps | --maps-dir {maps2} | scores sweep said.folder printed
evaluate | --mask-dir {masks} | scores printed
evaluate-maps | --mask-dir {masks} | scores sweep printed
evaluate | --unlabelled skip | scores said.unlabelled printed
evaluate | --name this | run/scores/it->run/scores/this said.name
evaluate-maps | --alpha 1 | scores said.alpha printed
evaluate-maps | --background threshold | scores sweep said.background printed
evaluate-maps | --saliency-dir {saliency} | scores sweep printed
evaluate-maps | --alphas 0.1 0.9 | sweep printed

report | --data-root {other} | page pixels
report | --list val | page files
report | --run-dir {out}/elsewhere | run->elsewhere log.output_dir page printed
report | --output-dir {out}/there | run->there printed
report | --val-list train | page pixels
report | --images 1 | page
report | --rows 1 | pixels

export | --data-root {other} | overlays
export import | --output-dir {out}/there | export->there
export import | --overwrite | error files | --output-dir {out}/strange
export | --labels-dir {labels2} | pixels
import | --labels-dir {labels} | contents files
export | --list train | contents files
export | --min-area 100 | contents pixels
export | --format coco | files
import | --data-root {bare} |
import | --import-cvat {cvat2} | contents files pixels

saliency | --data-root {other} | images pixels
saliency | --list val | images files
saliency | --run-dir {out}/there | run->there log.output_dir
saliency | --output-dir {out}/there | run/saliency->there
saliency | --overwrite | batch rewritten | AGAIN
saliency | --model {onnx2} | inputs.network pixels
saliency | --checkpoint-dir {nets2} | inputs.network pixels | --model u2net --checkpoint-dir {nets}
saliency | --like isnet | options.mean options.std options.by_maximum pixels
saliency | --input-size 24 | options.input_size pixels

download | items:refine | asked files contents printed
download | --list | asked timeout files printed
download | --data-root {out}/there | voc->there printed
download | --checkpoint-dir {out}/there | nets->there
download | --mirror https://d.e/f | asked
download | --keep-archives | files
download | --retries 1 | asked timeout | --mirror https://broken --retries 0
download | --timeout 9 | timeout

train | -c {config2} | options.SOLVER.LR log.SOLVER.LR weights loss lr
train | --overwrite | rewritten | AGAIN
test crf | -c {config2} | log.SOLVER.LR
predict | -c {config2} | log.SOLVER.LR
onnx | -c {config2} | log.SOLVER.LR
train test crf predict onnx | --device cuda | refused: --device cuda: PyTorch sees no GPU
train predict onnx | --dry-run | files
test | --dry-run | files printed
crf | --dry-run | files kept printed
test | --overwrite | error files printed | --labels-dir {out}/strange
crf | --overwrite | error files printed kept | --labels-dir {out}/strange
predict | --overwrite | batch rewritten | AGAIN
onnx | --overwrite |
test | -m {deeplab2} | inputs.checkpoint scores pixels said.checkpoint said.made_from printed
crf | -m {deeplab2} | inputs.checkpoint kept scores pixels said.checkpoint said.made_from printed
predict | -m {deeplab2} | inputs.checkpoint pixels overlays page
onnx | -m {deeplab2} | contents
test crf | --labels-dir {out}/there | labels->there
test crf | --scores {out}/there/it.json | files
test | --save-logits | files log.EVAL.SAVE_LOGITS
crf | --stored-logits | refused: run `main.py test --save-logits` first
predict | --input {demo}/JPEGImages/val_000001.jpg | images files page
predict | --output-dir {out}/there | labels->there page
predict | --crf | options.crf kept pixels overlays page
predict | --max-side 32 | options.max_side pixels overlays page
onnx | --output {out}/there.onnx | net.onnx->there.onnx

train | EXP.ID=other | deeplab/models/tiny->deeplab/models/other
train | EXP.OUTPUT_DIR={out}/there | deeplab->there
train | EXP.SEED=1 | generator order_seed sample_seed weights loss
train | DATASET.ROOT={other} | images weights loss
train | DATASET.LABEL_DIR={masks} | images weights loss
test | DATASET.MASK_DIR={masks} | scores printed
train | SPLIT.TRAIN=val | images weights loss small/train_aug->small/val
test | SPLIT.VAL=val | images scores said.list said.made_from files printed
train | IMAGE.MEAN=[90,80,70] | weights loss
test | IMAGE.MEAN=[9,8,7] | options.mean scores pixels said.made_from printed
train | IMAGE.CROP=41 | weights loss
train | IMAGE.SCALES=[1.0] | weights loss
train | MODEL.NAME=big | tiny/small->tiny/big
train | MODEL.BLOCKS=[1,1,2,1] | weights loss
train | MODEL.WIDTH=0.125 | weights loss
train | MODEL.ATROUS_RATES=[1,3] | weights loss
train | MODEL.SCALES=[0.75] | weights loss
train | MODEL.FREEZE_BN=true | weights loss
train | MODEL.INIT_MODEL={deeplab} | inputs.initial-weights weights loss
train | SOLVER.ITER_MAX=3 | epochs weights lr
train | SOLVER.BATCH_SIZE=3 | batch weights loss
train | SOLVER.ITER_SIZE=2 | weights loss
train | SOLVER.LR=0.02 | weights loss lr
train | SOLVER.ASPP_FACTOR=2 | weights loss
train | SOLVER.LR_DECAY=2 | weights lr
train | SOLVER.POLY_POWER=2 | weights lr
train | SOLVER.MOMENTUM=0.1 | weights
train | SOLVER.WEIGHT_DECAY=0.5 | weights loss
train | SOLVER.ONLINE_LABEL=masked | weights loss
train | SOLVER.ITER_SAVE=2 | epochs loss
test | EVAL.SAVE_LOGITS=true | files
crf | CRF.BACKEND=pydensecrf | refused: CRF backend pydensecrf: the package is not installed
crf | CRF.ITER_MAX=0 | options.crf.iterations scores pixels said.made_from printed
crf | CRF.POS_W=200 | options.crf.position_weight scores pixels said.made_from printed
crf | CRF.POS_XY_STD=9 | options.crf.position_xy scores pixels said.made_from printed | CRF.BI_W=0
crf | CRF.BI_W=100 | options.crf.bilateral_weight scores pixels said.made_from printed
crf | CRF.BI_XY_STD=3 | options.crf.bilateral_xy scores pixels said.made_from printed
crf | CRF.BI_RGB_STD=60 | options.crf.bilateral_rgb scores pixels said.made_from printed
crf | CRF.NEGLIGIBLE=0 | options.crf.negligible kept said.made_from | -m {deeplab2}
train | RUN.DEVICE=cuda | refused: --device cuda: PyTorch sees no GPU
train | RUN.AMP=bf16 | options.precision weights loss
train | RUN.COMPILE=true | compiled
train | RUN.NUM_WORKERS=1 | workers

check | root:{bare} | printed
check make-list masks | --num-workers 3 | processes
check | --list {foreign} | printed error
check | --quick | printed error | root:{faulty}
check | --strict | error | root:{bare}
check | --show 0 | printed | root:{faulty}
check | --json {out}/it.json | files
make-list | root:{bare} | contents
make-list | --from-masks | contents | root:{bare} --from-xml
make-list | --from-xml | contents | root:{bare}
make-list | --list train | contents
make-list | --output {out}/there | list.txt->there
masks | root:{coco2} | pixels
masks | --list train | files
masks | --output {out}/there | masks->there
plan | root:{bare} | printed
plan | --run-dir {out}/there | run->there printed | --val-share 0.3
plan | --quick | printed
plan | --val-share 0.3 | printed files
plan | --seed 1 | contents | --val-share 0.3
plan | --background crf | printed
plan | --init none | printed
synthetic | root:{out}/there | made->there
synthetic | --classes 3 | contents pixels overlays
synthetic | --train 2 | files contents
synthetic | --val 2 | files contents
synthetic | --single 2 | files contents
synthetic | --size 40 | contents pixels overlays
synthetic | --seed 1 | contents pixels overlays
synthetic | --coat-preference 0 | contents pixels overlays
synthetic | --overwrite | error files processes | root:{out}/run
"""


# Aspects that are part of a record, and are compared before work goes on.
RECORDED, PREFIXES = {"images", "validation", "classes"}, ("options.", "inputs.")


RESULTS = {"weights", "loss", "scores", "pixels"}


class Row(NamedTuple):
    command: str
    option: str
    changes: str
    given: str

    @property
    def name(self) -> str:
        return re.split("[ =:]", self.option)[0]


def rows() -> Iterator[Row]:
    for line in TABLE.strip().splitlines():
        if line:
            commands, option, changes, given, *_ = [
                part.strip() for part in (line % globals()).split("|")] + [""]
            for command in commands.split():
                yield Row(command, option, changes, given)


ROWS = list(rows())
BASES: dict[tuple[str, str], dict[str, Any]] = {}  # what the command does without the option


@pytest.fixture(scope="session")
def places(tmp_path_factory: pytest.TempPathFactory, demo: Path, run: Path) -> Places:
    return Places(tmp_path_factory.mktemp("places"), demo, run)


class Caught(Exception):
    """Raised with the parser of a command."""


def parser_of(command: Command, monkeypatch: pytest.MonkeyPatch) -> argparse.ArgumentParser:
    def caught(self: argparse.ArgumentParser, *_: object) -> None:
        raise Caught(self)

    with monkeypatch.context() as patch, pytest.raises(Caught) as found:
        patch.setattr(argparse.ArgumentParser, "parse_known_args", caught)
        load(command.module).parse([])
    parser = found.value.args[0]
    if command.sub:
        choices, = (action.choices for action in parser._actions
                    if isinstance(action, argparse._SubParsersAction))
        parser = choices[command.sub]
    return parser


def names(action: argparse.Action) -> list[str]:
    return list(action.option_strings) or [action.dest]


def implied(row: Row, parser: argparse.ArgumentParser) -> set[str]:
    """The names under which a record and the log have the option."""
    if row.name.isupper():
        name, shapes = row.name, row.name in Config().shaping()
    else:
        action, = (action for action in parser._actions if row.name in names(action))
        name = action.dest
        shapes = isinstance(parser, StageParser) and getattr(action, "shapes_result", True)
    return {f"log.{name}"} | ({f"options.{name}"} if shapes else set())


def moved(names: set[str], words: list[str]) -> set[str]:
    for word in words:
        before, _, after = word.partition("->")
        names = {name.replace(before, after, 1) if name.startswith(before) or
                 f"/{before}" in name else name for name in names}
    return names


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.command} {row.option} {row.given}")
def test_option(row, places, consumers, tmp_path, monkeypatch):
    command, key = COMMANDS[row.command], (row.command, row.given)
    if key not in BASES:
        BASES[key] = outcome(command, places, tmp_path / "base", consumers, row.given)
    base = BASES[key]
    now = outcome(command, places, tmp_path / "now", consumers, row.given, row.option)
    if row.changes.startswith("refused: "):
        assert base["error"] is None and row.changes.removeprefix("refused: ") in now["error"]
        return
    words = row.changes.split()
    moves = [word for word in words if "->" in word]
    own = implied(row, parser_of(command, monkeypatch)) & base.keys() & now.keys()
    expected = set(words) - set(moves) | own
    found = changed(base | {"files": moved(base["files"], moves)}, now)
    if "weights" in expected:  # labels may change or not
        found -= {"scores"}
    assert found == expected, {name: (base.get(name), now.get(name))
                               for name in sorted(found ^ expected)}
    recorded = {name for name in expected if name in RECORDED or name.startswith(PREFIXES)}
    if "images" in base and expected & {"weights", "pixels"} and row.name != "--epochs":
        assert recorded  # else a result of the other value would pass for one of this
    # What is marked as shaping the result changes more of it than the record.
    assert expected & RESULTS or not any(name.startswith("options.") for name in own)
    assert "error" in expected or not str(base["error"]).startswith("error")
    assert base["files"] or base["printed"] or "error" in expected  # it has done something
    assert not moves or base["files"] != now["files"]


def test_every_option_has_a_row(monkeypatch):
    told = {(COMMANDS[row.command].module, COMMANDS[row.command].sub, row.name) for row in ROWS}
    lacking = [f"{name} {' '.join(names(action))}" for name, command in COMMANDS.items()
               for action in parser_of(command, monkeypatch)._actions
               if not isinstance(action, argparse._HelpAction)
               and not told & {(command.module, command.sub, name) for name in names(action)}]
    assert not lacking


def test_every_key_of_deeplab_has_a_row():
    keys = {f"{section}.{key}" for section, values in Config().to_dict().items() for key in values}
    assert keys == {row.name for row in ROWS if row.name.isupper()}


def test_every_command_is_in_the_table(monkeypatch):
    """All scripts of the root, and every sub-command."""
    modules = {command.module for command in COMMANDS.values()}
    assert {path.stem for path in ROOT.glob("*.py")} <= modules
    for module in (MAIN, DATASETS):
        parser = parser_of(Command(module, ""), monkeypatch)
        subs, = (action.choices for action in parser._actions
                 if isinstance(action, argparse._SubParsersAction))
        assert set(subs) == {command.sub for command in COMMANDS.values()
                             if command.module == module}


# run.sh: what it hands to the scripts.

PLANNED = """LIST train_aug
VAL val
BATCH 10
EPOCHS 15
MILESTONES 5 10
REFINE_EPOCHS 30
REFINE_MILESTONES 10 20
ITERATIONS 20000
SIDE 320
CONFIG voc12.yaml
BACKGROUND saliency
SCORED train
INIT_MODEL none
ONLINE_LABEL off"""
# Says what it is called with, and answers where run.sh asks.
PYTHON = """#!/bin/bash
case "$1 $2" in
    "-c "*) echo {folder}/stamp ;;
    "-m pip") ;;
    *) echo "$*" >> {folder}/calls
       [ "$2" != datasets.plan ] || echo "{planned}" ;;
esac
"""
# Options of run.sh | given besides | text in its calls -> what stands there without the option.
CHAIN = [line.split("|") for line in """
--data-root other||/other->/photos
--run-dir there||/there->/here
--gpus 2||-m utils.torchrun --standalone --nproc-per-node 2 --max-restarts 0 ->
--nodes 3|--nodes 2 --rdzv here:1|--nnodes 3->--nnodes 2
--rdzv there:2|--nodes 2 --rdzv here:1|--rdzv-endpoint there:2->--rdzv-endpoint here:1
--max-restarts 3|--gpus 2|--max-restarts 3->--max-restarts 0
--seed 1||SEED=1->SEED=0, --seed 1-> --seed 0
--overwrite|| --overwrite->
--quick|| --quick->
--init none||--init none->--init imagenet
--train-args "--alpha 0.3"|| --alpha 0.3->
--background crf|| --background crf->
--val-share 0.2|| --val-share 0.2->
""".strip().splitlines()]


SCORED = {"cam": "cam_maps", "fixed": "fixed_maps", "drs": "localization_maps",
          "refined": "refined_maps", "pseudo_labels": "pseudo_labels"}


def chain(folder: Path, options: str, made: Iterable[str] = SCORED.values()) -> str:
    """The calls of Python that run.sh makes, where the run has these folders already."""
    for name in made:
        for run in ("here", "there"):
            (folder / run / name).mkdir(parents=True)
    (folder / "bin").mkdir(parents=True)
    python = folder / "bin" / "python"
    python.write_text(PYTHON.format(folder=folder, planned=PLANNED))
    python.chmod(0o755)
    words = [*([] if "--demo" in options else ["--data-root", "photos"]), "--run-dir", "here",
             *shlex.split(options)]
    done = subprocess.run(
        ["bash", str(ROOT / "run.sh"), *words], cwd=folder, capture_output=True, text=True,
        env=ENVIRONMENT | {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "VIRTUAL_ENV": "x"})
    assert done.returncode == 0, done.stderr
    return (folder / "calls").read_text().replace(str(folder), "").replace(
        str(ROOT), "").replace("../" * 20, "")


@pytest.mark.parametrize(("option", "given", "changes"), CHAIN, ids=lambda text: text)
def test_option_of_the_chain(tmp_path, option, given, changes):
    base, now = chain(tmp_path / "base", given), chain(tmp_path / "now", f"{given} {option}")
    assert now != base
    for change in changes.split(","):
        after, before = change.split("->")
        assert after in now
        now = now.replace(after, before)
    assert now == base


def test_stages_of_the_chain_are_its_parts(tmp_path):
    stages = ("data", "cam", "drs", "maps", "refine", "labels", "evaluate", "deeplab", "report")
    plan, *whole = chain(tmp_path / "all", "").splitlines()
    parts = []
    for stage in stages:
        first, *calls = chain(tmp_path / stage, f"--stages {stage}").splitlines()
        assert first == plan and calls
        parts += calls
    assert parts == whole


def test_demos(tmp_path):
    """The large one compares CAM, fixed and learnable DRS, which differ in nothing but --drs."""
    small, large = (chain(tmp_path / size, f"--demo {size} --seed 1")
                    for size in ("small", "large"))
    assert "data/demo-seed1 " in small and "data/demo-large-seed1 " in large
    first, *rest = large.splitlines()
    assert "datasets.synthetic" in first and "--train 800" in first and "--size 320" in first
    trainings = [line for line in rest if line.startswith("train_")]
    assert [re.findall(r"--drs (\w+)", line) for line in trainings] == [
        ["none"], ["none"], ["fixed"], ["learnable"]]
    same = {re.sub(r" --drs \w+( --delta \S+)?| --output-dir \S+", "", line)
            for line in trainings[1:]}
    assert len(same) == 1
    assert "main.py train" in small and "main.py train" not in large


def test_what_was_not_made_is_not_scored(tmp_path):
    """So that the baseline can be left out of a run with masks."""
    made = {"drs": "localization_maps", "pseudo_labels": "pseudo_labels"}
    for number, names in enumerate((SCORED, made)):
        calls = chain(tmp_path / str(number), "--stages evaluate", names.values())
        assert re.findall(r"--name (\w+)", calls) == list(names)
    with pytest.raises(AssertionError, match="neither maps nor labels"):
        chain(tmp_path / "none", "--stages evaluate", [])


@pytest.mark.parametrize(("gpus", "launcher"), [
    (None, ""), ("1", ""),
    ("2", "-m utils.torchrun --standalone --nproc-per-node 2 ")])
def test_deeplabs_script_starts_as_many_processes_as_there_are_gpus(tmp_path, gpus, launcher):
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python"
    python.write_text(PYTHON.format(folder=tmp_path, planned=""))
    python.chmod(0o755)
    subprocess.run(["bash", str(ROOT / "DeepLab-V2-PyTorch" / "train.sh"), "SOLVER.LR=1"],
                   check=True, env=ENVIRONMENT | ({} if gpus is None else {"GPUS": gpus}) | {
                       "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "VIRTUAL_ENV": "x"})
    assert (tmp_path / "calls").read_text() == \
        f"{launcher}main.py train -c configs/voc12.yaml SOLVER.LR=1\n"


def test_every_option_of_the_chain_has_a_row():
    text = (ROOT / "run.sh").read_text()
    explained = set(re.findall(r"^  (--[a-z-]+)", text, re.MULTILINE))
    assert explained == {option.split()[0] for option, *_ in CHAIN} | {
        "--stages", "--demo", "--help"}
    loop = text.partition("while [")[2].partition("done")[0]
    taken = set(re.findall(r"(--[a-z-]+)(?=[|)])", loop))
    assert taken == explained
