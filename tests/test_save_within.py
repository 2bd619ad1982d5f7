"""--save-every: epochs that are saved in their middle, killed there, and go on from there."""

import json
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from helpers import MACHINE, TRAINING, run_script, run_stage, stage_error
from test_training import CPU, Figures, batches_of, figures, losses, record, same, squared
from torch import nn
from torch.optim.lr_scheduler import MultiStepLR

from labelling.image_scores import ImageScorer
from utils import checkpoint, engine
from utils.checkpoint import read
from utils.files import UserError
from utils.training import Training

ALWAYS = 1e-9  # minutes
EPOCHS, BATCHES = 3, 4
OPTIONS = (*MACHINE, *TRAINING, "--batch-size", 2)


class Killed(BaseException):
    pass


def fit(folder: Path, save_every: float, killed_after: int = 0, overwrite: bool = False,
        **arguments) -> Training:
    """Three epochs of four batches with momentum, a schedule, and figures collected on the way;
    ended after a number of batches."""
    torch.manual_seed(0)
    model = nn.Linear(1, 1)
    model.config = {"network": "refine", "num_classes": 1}
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    scheduler = MultiStepLR(optimizer, [1, 2])
    training = Training(folder, model, optimizer, scheduler, record(), CPU)
    training.resume(overwrite)
    batches, scorer, seen = batches_of(Figures(), 2), ImageScorer(1), 0

    def loss_fn(network: nn.Module, batch: dict) -> torch.Tensor:
        nonlocal seen
        if killed_after and seen == killed_after:
            raise Killed
        seen += 1
        scorer.update(network(batch["image"]), batch["y"] > 0.7)
        return squared(network, batch)

    for _ in training.epochs(EPOCHS, batches, save_every, scorer):
        row = engine.train_epoch(model, batches, loss_fn, training, **arguments)
        scheduler.step()
        training.end_epoch(row | scorer.scores().figures(), row["loss"])
    return training


def assert_alike(one: Path, other: Path) -> None:
    """Everything in the checkpoints but the times, and the figures."""
    assert figures(one) == figures(other)
    for name in ("last.pth", "best.pth"):
        mine, theirs = (torch.load(folder / name, weights_only=True) for folder in (one, other))
        for content in (mine, theirs):
            del content["made_from"]
            for row in content["history"]:
                del row["seconds"]
        assert same(mine, theirs), name


@pytest.mark.parametrize("accumulate", [1, 2])
def test_saving_changes_nothing(tmp_path, accumulate):
    fit(tmp_path / "rare", 0, accumulate=accumulate)
    fit(tmp_path / "often", ALWAYS, accumulate=accumulate)
    assert_alike(tmp_path / "rare", tmp_path / "often")


@pytest.mark.parametrize("accumulate", [1, 2])
def test_killed_after_any_batch(tmp_path, accumulate):
    fit(tmp_path / "whole", 0, accumulate=accumulate)
    for point in range(1, EPOCHS * BATCHES):
        folder = tmp_path / str(point)
        with pytest.raises(Killed):
            fit(folder, ALWAYS, point, accumulate=accumulate)
        if point >= accumulate:
            epoch, done = divmod(point // accumulate * accumulate, BATCHES)
            rest = read(folder / "last.pth").rest
            assert rest["epoch"] == epoch and (rest["begun"] or {"batches": 0})["batches"] == done
        with suppress(Killed):  # again, after the next save, where there is one
            fit(folder, ALWAYS, accumulate, accumulate=accumulate)
        fit(folder, ALWAYS, accumulate=accumulate)
        assert_alike(tmp_path / "whole", folder)


def test_seconds_go_on(tmp_path):
    with pytest.raises(Killed):
        fit(tmp_path, ALWAYS, 2)
    content = torch.load(tmp_path / "last.pth", weights_only=True)
    content["begun"]["seconds"] = 1000.0
    torch.save(content, tmp_path / "last.pth")
    rows = fit(tmp_path, 0).history
    assert rows[0]["seconds"] >= 1000 > rows[1]["seconds"]


@pytest.mark.parametrize("save_every", [0, 30])
def test_short_epochs_are_not_saved_within(tmp_path, save_every):
    with pytest.raises(Killed):
        fit(tmp_path, save_every, BATCHES + 2)
    assert read(tmp_path / "last.pth").rest["begun"] is None


def test_an_older_training_goes_when_the_first_save_comes(tmp_path):
    fit(tmp_path, 0)
    with pytest.raises(Killed):
        fit(tmp_path, 0, 1, overwrite=True)
    assert (tmp_path / "best.pth").exists() and len(losses(tmp_path)) == EPOCHS
    with pytest.raises(Killed):
        fit(tmp_path, ALWAYS, 1, overwrite=True)
    assert not (tmp_path / "best.pth").exists() and not losses(tmp_path)
    fit(tmp_path, 0)
    fit(tmp_path / "whole", 0)
    assert_alike(tmp_path / "whole", tmp_path)


def test_a_training_that_diverges_saves_nothing(tmp_path, monkeypatch):
    fit(tmp_path, 0, overwrite=True)
    before = (tmp_path / "last.pth").read_bytes()
    step = torch.optim.Adam.step

    def spoiled(self: torch.optim.Adam, *_: object) -> None:
        step(self)
        with torch.no_grad():
            self.param_groups[0]["params"][0].fill_(float("inf"))

    monkeypatch.setattr(torch.optim.Adam, "step", spoiled)
    with pytest.raises(FloatingPointError, match="in epoch 1.*--lr"):
        fit(tmp_path, ALWAYS, overwrite=True)
    assert (tmp_path / "last.pth").read_bytes() == before


@pytest.mark.parametrize("damage", [
    "a text", 7, [], {"a": 1}, {"batches": 0}, {"batches": BATCHES}, {"batches": -1},
    {"batches": "x"}, {"batches": None}, {"losses": None}, {"losses": ["x"]}, {"losses": []},
    {"losses": [float("nan")]}, {"figures": None}, {"figures": [[]]}, {"figures": []},
    {"figures": [[torch.zeros(2, 3), torch.zeros(2, 3)]]}, {"lr": "x"}, {"seconds": None}])
def test_a_damaged_position_is_one_line(tmp_path, damage):
    with pytest.raises(Killed):
        fit(tmp_path, ALWAYS, 2)
    content = torch.load(tmp_path / "last.pth", weights_only=True)
    if isinstance(damage, dict) and "a" not in damage:
        damage = content["begun"] | damage
    torch.save(content | {"begun": damage}, tmp_path / "last.pth")
    with pytest.raises(UserError, match=r"last.pth: damaged.*--overwrite") as caught:
        fit(tmp_path, ALWAYS)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_without_a_position_is_of_the_end_of_an_epoch(tmp_path):
    """As earlier versions wrote it."""
    with pytest.raises(Killed):
        fit(tmp_path / "old", 0, 2 * BATCHES + 1)
    content = torch.load(tmp_path / "old" / "last.pth", weights_only=True)
    del content["begun"]
    checkpoint.save(tmp_path / "old" / "last.pth", content)
    fit(tmp_path / "old", 0)
    fit(tmp_path / "whole", 0)
    assert_alike(tmp_path / "whole", tmp_path / "old")


def script(demo: Path, run: Path, name: str, folder: Path, killed_after: int, processes: int,
           check: bool = True) -> str:
    maps = ("--maps-dir", run / "localization_maps") if name == "train_refine" else ()
    done = run_script("tests/killed_within.py", killed_after, name, "--data-root", demo,
                      "--run-dir", folder.parent, "--output-dir", folder, *OPTIONS, *maps,
                      processes=processes, check=check)
    assert check or done.returncode
    return done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name, processes", [("train_drs", 1), ("train_drs", 2),
                                             ("train_refine", 2)])
def test_a_killed_stage_ends_as_the_unbroken_one(demo, run, tmp_path, name, processes):
    """Killed in the second epoch, after the second of its four batches."""
    script(demo, run, name, tmp_path / "whole", 0, processes)
    script(demo, run, name, tmp_path / "killed", 5, processes, check=False)
    rest = read(tmp_path / "killed" / "last.pth").rest
    assert rest["epoch"] == 1 and rest["begun"]["batches"] == 2
    said = script(demo, run, name, tmp_path / "killed", 0, processes)
    assert "going on after batch 2 in epoch 2 of 2" in said
    assert_alike(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.slow
@pytest.mark.parametrize("before, after", [(2, 1), (1, 2)])
def test_with_another_number_of_processes(demo, run, tmp_path, before, after):
    """To rounding, as from the end of an epoch; the figures of the epoch are of all images."""
    script(demo, run, "train_drs", tmp_path / "whole", 0, 1)
    script(demo, run, "train_drs", tmp_path / "killed", 5, before, check=False)
    script(demo, run, "train_drs", tmp_path / "killed", 0, after)
    for mine, theirs in zip(figures(tmp_path / "killed"), figures(tmp_path / "whole"),
                            strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        assert mine["map"] == pytest.approx(theirs["map"], rel=1e-3)
    one, other = (read(tmp_path / folder / "last.pth").state for folder in ("whole", "killed"))
    for part, value in one.items():
        torch.testing.assert_close(other[part], value, rtol=1e-3, atol=1e-5)


def test_the_options_value_does_not_shape_the_result(demo, tmp_path):
    common = ("--data-root", demo, "--run-dir", tmp_path, *OPTIONS, "--val-list", "none")
    run_stage("train_drs", *common, "--epochs", 1)
    run_stage("train_drs", *common, "--epochs", 2, "--save-every", "1e-9")
    assert len(json.loads((tmp_path / "classifier" / "metrics.json").read_text())) == 2


def test_a_dry_run_says_from_where(demo, tmp_path, capsys):
    common = ("--data-root", demo, "--run-dir", tmp_path, *OPTIONS, "--val-list", "none")
    run_stage("train_drs", *common, "--epochs", 1)
    last = tmp_path / "classifier" / "last.pth"
    content = torch.load(last, weights_only=True)
    begun = {"batches": 2, "losses": [0.1], "figures": [[]], "lr": 0.01, "seconds": 1.0}
    torch.save(content | {"begun": begun}, last)
    run_stage("train_drs", *common, "--dry-run")
    assert "from batch 2 in epoch 2 of" in capsys.readouterr().err
    torch.save(content | {"begun": begun | {"batches": 5}}, last)
    assert "damaged" in stage_error("train_drs", *common, "--dry-run")
