"""Training and labelling: interrupted, in several processes, without masks, started again."""

import argparse
import json
import math
import shutil
import signal
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import (
    ENVIRONMENT,
    MACHINE,
    ROOT,
    TRAINING,
    command,
    run_script,
    run_stage,
    stage_error,
)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.optim.lr_scheduler import MultiStepLR

from utils import engine, loading, stage
from utils.checkpoint import read
from utils.files import UserError
from utils.loading import DeviceBatches, ShuffledBatches, training_batches
from utils.outputs import unfinished
from utils.provenance import RECORD, Record
from utils.runtime import Runtime
from utils.setup import suggest_lr
from utils.training import Training

CPU = Runtime(torch.device("cpu"), 0, 1, None)


def losses(folder: Path) -> list[float]:
    return [figures["loss"] for figures in json.loads((folder / "metrics.json").read_text())]


def figures(folder: Path) -> list[dict]:
    """The history of a training without its times."""
    return [{name: value for name, value in row.items() if name != "seconds"}
            for row in json.loads((folder / "metrics.json").read_text())]


def same(one: object, other: object) -> bool:
    """Whether two nested structures with tensors are equal, bit for bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


# Interrupted

@pytest.mark.slow
def test_a_killed_training_ends_as_the_unbroken_one(demo, tmp_path):
    common = ("--data-root", demo, *MACHINE, *TRAINING, "--batch-norm", "--epochs", 12,
              "--milestones", 4, 11)
    run_stage("train_drs", *common, "--run-dir", tmp_path / "unbroken")
    broken = tmp_path / "broken"
    again = command("train_drs.py", *common, "--run-dir", broken)
    log = broken / "logs" / "classifier.log"
    with open(tmp_path / "output", "wb") as output:
        process = subprocess.Popen(again, cwd=ROOT, env=ENVIRONMENT, stderr=output)
        try:
            deadline = time.monotonic() + 120
            while not (log.exists() and "epoch 3 " in log.read_text()):
                assert process.poll() is None and time.monotonic() < deadline, \
                    (tmp_path / "output").read_text()
                time.sleep(0.005)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
    assert process.returncode == -signal.SIGKILL
    assert 3 <= read(broken / "classifier" / "last.pth").rest["epoch"] < 12
    done = run_script("train_drs.py", *common, "--run-dir", broken)
    assert "going on after epoch" in done.stderr
    whole, resumed = tmp_path / "unbroken" / "classifier", broken / "classifier"
    assert figures(resumed) == figures(whole) and len(losses(whole)) == 12
    for name in ("last.pth", "best.pth"):
        one, other = read(whole / name), read(resumed / name)
        assert same(one.state, other.state)
        assert one.rest["epoch"] == other.rest["epoch"]
    one, other = read(whole / "last.pth").rest, read(resumed / "last.pth").rest
    assert same(one["optimizer"], other["optimizer"])
    assert one["scheduler"] == other["scheduler"]
    assert one["optimizer"]["state"] and one["made_from"]["images"]


def test_more_epochs_go_on_and_other_options_do_not(demo, run, tmp_path):
    shutil.copytree(run / "classifier", tmp_path / "classifier")
    common = ("--data-root", demo, "--run-dir", tmp_path, *MACHINE, *TRAINING)
    before = losses(tmp_path / "classifier")
    run_stage("train_drs", *common, "--epochs", "3")
    assert losses(tmp_path / "classifier")[:2] == before
    assert len(losses(tmp_path / "classifier")) == 3
    last = (tmp_path / "classifier" / "last.pth").read_bytes()
    message = stage_error("train_drs", *common, "--epochs", "3", "--lr", "0.02", "--drs", "none")
    assert "last.pth" in message and "--overwrite" in message
    assert "--drs was learnable, is none" in message and "--lr was 0.01, is 0.02" in message
    assert (tmp_path / "classifier" / "last.pth").read_bytes() == last
    run_stage("train_drs", *common, "--epochs", "1", "--overwrite")
    assert losses(tmp_path / "classifier") == before[:1]  # started over, from the same seed


def test_resume_refuses_other_classes(own_demo, run, tmp_path):
    shutil.copytree(run / "classifier", tmp_path / "classifier")
    names = (own_demo / "classes.txt").read_text().split()
    (own_demo / "classes.txt").write_text("\n".join(["renamed", *names[1:]]))
    shutil.rmtree(own_demo / "Annotations")
    common = ("--data-root", own_demo, "--run-dir", tmp_path, *MACHINE, *TRAINING)
    assert "classes" in stage_error("train_drs", *common)
    (own_demo / "classes.txt").write_text("\n".join([*names, "another"]))
    assert "classes" in stage_error("train_drs", *common)


def test_seed_decides(demo, run, tmp_path):
    common = ("--data-root", demo, *MACHINE, *TRAINING, "--epochs", "1")
    run_stage("train_drs", *common, "--run-dir", tmp_path / "same")
    run_stage("train_drs", *common, "--run-dir", tmp_path / "other", "--seed", "1")
    first = losses(run / "classifier")[0]
    assert losses(tmp_path / "same" / "classifier")[0] == first
    assert losses(tmp_path / "other" / "classifier")[0] != first


def test_seed_decides_where_a_training_starts(demo, tmp_path):
    heads = []
    for name, seed in (("one", 0), ("same", 0), ("other", 1)):
        run_stage("train_drs", "--data-root", demo, "--run-dir", tmp_path / name, *MACHINE,
                  *TRAINING, "--epochs", 1, "--lr", 1e-9, "--seed", seed, "--val-list", "none")
        heads.append(read(tmp_path / name / "classifier" / "last.pth").state["extra_conv4.weight"])
    assert torch.equal(heads[0], heads[1])
    assert not torch.allclose(heads[0], heads[2], rtol=0.1)


def test_training_on_workers_is_the_same(demo, run, tmp_path):
    run_stage("train_refine", "--data-root", demo, "--run-dir", tmp_path, "--maps-dir",
              run / "localization_maps", *MACHINE, *TRAINING, "--num-workers", "2")
    assert figures(tmp_path / "refine") == figures(run / "refine")


# Several processes

@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_processes_train_as_one(demo, tmp_path, processes):
    """A batch of 4; three processes hold 1, 1 and 2 images of it. And two batches to validate on,
    each in a process of its own."""
    common = ("--data-root", demo, *MACHINE, *TRAINING, "--val-list", "train_aug")
    run_stage("train_drs", *common, "--run-dir", tmp_path / "one")
    run_script("train_drs.py", *common, "--run-dir", tmp_path / "two", processes=processes)
    one, two = (tmp_path / name / "classifier" for name in ("one", "two"))
    for mine, theirs in zip(figures(one), figures(two), strict=True):
        assert theirs == pytest.approx(mine, rel=1e-5)
    assert len(set(losses(one))) == 2  # they do change
    mine, theirs = read(one / "last.pth").state, read(two / "last.pth").state
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        torch.testing.assert_close(theirs[name], value, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("script, processes", [("train_drs", 3), ("train_refine", 4)])
def test_batches_of_ten_are_those_of_one_process(own_demo, run, tmp_path, script, processes):
    listing = own_demo / "ImageSets" / "Segmentation" / "train_aug.txt"
    listing.write_text(listing.read_text() + "".join(
        f"{path.stem} 0\n" for path in sorted((own_demo / "JPEGImages").glob("single*"))))
    options = ("--data-root", own_demo, *MACHINE, *TRAINING, "--batch-size", "10")
    if script == "train_refine":
        run_stage("make_localization_maps", "--data-root", own_demo, "--run-dir", tmp_path,
                  *MACHINE, "--checkpoint", run / "classifier" / "best.pth")
        options += ("--maps-dir", tmp_path / "localization_maps")
    run_stage(script, *options, "--output-dir", tmp_path / "one", "--run-dir", tmp_path)
    run_script(f"{script}.py", *options, "--output-dir", tmp_path / "many", "--run-dir", tmp_path,
               processes=processes)
    assert losses(tmp_path / "many") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
    one, many = (read(tmp_path / name / "last.pth").state for name in ("one", "many"))
    # Adam's first steps divide small gradients by themselves, rounding and all.
    tolerance = 1e-5 if script == "train_drs" else 1e-3
    for name, value in one.items():
        torch.testing.assert_close(many[name], value, rtol=1e-3, atol=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_batch_norm(processes):
    run_script("tests/batch_norm_processes.py", processes=processes)


@pytest.mark.slow
def test_two_processes_label_as_one(demo, run, tmp_path):
    maps = ("--data-root", demo, *MACHINE, "--checkpoint", run / "classifier" / "best.pth",
            "--batch-size", "3")
    labels = ("--data-root", demo, *MACHINE, "--checkpoint", run / "refine" / "best.pth",
              "--batch-size", "3")
    for script, options in (("make_localization_maps", maps), ("make_pseudo_labels", labels)):
        run_stage(script, *options, "--run-dir", tmp_path / "one")
        run_script(f"{script}.py", *options, "--run-dir", tmp_path / "two", processes=2)
    for folder in ("localization_maps", "pseudo_labels"):
        one = sorted((tmp_path / "one" / folder).glob("*.png"))
        assert len(one) == 8
        for path in one:
            assert path.read_bytes() == (tmp_path / "two" / folder / path.name).read_bytes()


# Without masks

def test_labelling_without_masks(own_demo, run, tmp_path):
    common = ("--data-root", own_demo, *MACHINE, "--checkpoint", run / "refine" / "best.pth")
    run_stage("make_pseudo_labels", *common, "--run-dir", tmp_path / "with")
    shutil.rmtree(own_demo / "SegmentationClassAug")
    run_stage("make_pseudo_labels", *common, "--run-dir", tmp_path / "without")
    made = sorted((tmp_path / "without" / "pseudo_labels").glob("*.png"))
    assert len(made) == 8
    for path in made:
        assert path.read_bytes() == (tmp_path / "with" / "pseudo_labels" / path.name).read_bytes()


def test_training_without_masks_keeps_the_last(own_demo, tmp_path):
    for folder in ("SegmentationClassAug", "saliency_map"):
        shutil.rmtree(own_demo / folder)
    run_stage("train_drs", "--data-root", own_demo, "--run-dir", tmp_path, *MACHINE, *TRAINING)
    best, last = (read(tmp_path / "classifier" / name) for name in ("best.pth", "last.pth"))
    assert best.rest["epoch"] == last.rest["epoch"] == 2 and same(best.state, last.state)
    assert set(figures(tmp_path / "classifier")[0]) == {"epoch", "loss", "lr", "map", "f1"}


# Labelling again

def test_finished_images_are_skipped_and_never_mistaken(demo, run, tmp_path):
    common = ("--data-root", demo, "--run-dir", tmp_path, *MACHINE, "--batch-size", "1",
              "--checkpoint", run / "refine" / "best.pth")  # finished batches are skipped whole
    run_stage("make_pseudo_labels", *common)
    made = sorted((tmp_path / "pseudo_labels").glob("*.png"))
    content = {path.name: path.read_bytes() for path in made}
    stamps = {path.name: path.stat().st_mtime_ns for path in made}
    made[3].unlink()
    (tmp_path / "pseudo_labels" / f".{made[2].stem}.99.tmp.png").write_bytes(b"a broken write")
    run_stage("make_pseudo_labels", *common)
    assert {path.name: path.read_bytes() for path in made} == content
    assert {p.name for p in made if p.stat().st_mtime_ns != stamps[p.name]} == {made[3].name}
    # Another rule or checkpoint, for these images or others, does not come to the same folder.
    for other in (("--alpha", "0.5"), ("--no-ignore",), ("--list", "val", "--alpha", "0.5"),
                  ("--checkpoint", run / "classifier" / "best.pth")):
        message = stage_error("make_pseudo_labels", *common, *other)
        assert "pseudo_labels" in message and "--output-dir" in message
        assert {path.name: path.read_bytes() for path in made} == content
    run_stage("make_pseudo_labels", *common, "--list", "val")
    run_stage("make_pseudo_labels", *common)  # what was made from the same may be added to
    # Not even --overwrite may leave a mixture behind.
    assert "--output-dir" in stage_error("make_pseudo_labels", *common, "--alpha", "0.5",
                                         "--overwrite")
    assert {path.name: path.read_bytes() for path in made} == content
    run_stage("make_pseudo_labels", *common, "--overwrite")
    assert {path.name: path.read_bytes() for path in made} == content
    assert all(path.stat().st_mtime_ns != stamps[path.name] for path in made)


def record(**options) -> Record:
    return Record("test", options, ["cat"], images={"a": {"image": 1}, "b": {"image": 2}})


def test_files_of_unknown_origin_are_not_taken_for_ours(tmp_path):
    (tmp_path / "a.png").write_bytes(b"whose?")
    args = argparse.Namespace(overwrite=False, dry_run=False)
    with pytest.raises(UserError, match="unknown origin"):
        unfinished({tmp_path: record(alpha=0.2)}, args, CPU)
    assert {path.name for path in tmp_path.iterdir()} == {"a.png"}
    args.overwrite = True
    assert unfinished({tmp_path: record(alpha=0.2)}, args, CPU) == [0, 1]
    assert {path.name for path in tmp_path.iterdir()} == {RECORD}


def test_an_emptied_file_is_not_finished(tmp_path):
    args = argparse.Namespace(overwrite=False, dry_run=False)
    assert unfinished({tmp_path: record()}, args, CPU) == [0, 1]
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "b.png").write_bytes(b"content")
    assert unfinished({tmp_path: record()}, args, CPU) == [0]


# The loop itself, on a network of one layer

class Nothing:
    """A transform that does nothing."""

    def batch(self, batch: dict) -> dict:
        return batch


class Figures(torch.utils.data.Dataset):
    """Points on a line."""

    transform = Nothing()

    def __len__(self) -> int:
        return 8

    def __getitem__(self, key: tuple[int, int]) -> dict[str, torch.Tensor]:
        x = torch.tensor([key[1] / 8])
        return {"image": x, "y": 2 * x}


def squared(network: nn.Module, batch: dict) -> torch.Tensor:
    return (network(batch["image"]) - batch["y"]).square().mean()


def batches_of(points: Figures, size: int) -> DeviceBatches:
    order = ShuffledBatches(len(points), size, seed=0)
    return DeviceBatches(torch.utils.data.DataLoader(points, batch_sampler=order), CPU)


def fit(folder: Path, epochs: int, scores: list[float] | None = None, batch: int = 4,
        runtime: Runtime = CPU, **arguments) -> tuple[nn.Module, list[dict]]:
    torch.manual_seed(0)
    model = nn.Linear(1, 1)
    model.config = {"network": "refine", "num_classes": 1}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scheduler = MultiStepLR(optimizer, [1, 2])
    training = Training(folder, model, optimizer, scheduler, record(), runtime)
    training.resume()
    remaining, batches = iter(scores or []), batches_of(Figures(), batch)
    for _ in training.epochs(epochs, batches):
        row = engine.train_epoch(model, batches, squared, training, **arguments)
        scheduler.step()
        training.end_epoch(row, next(remaining) if scores else None)
    return model, training.history


def test_learning_rate_falls_at_the_start_of_the_milestones(tmp_path):
    _, history = fit(tmp_path, 4)
    assert [row["lr"] for row in history] == pytest.approx([0.1, 0.01, 0.001, 0.001])


def test_best_is_the_best_also_after_a_resume(tmp_path):
    fit(tmp_path, 3, [0.1, 0.5, 0.3])
    assert read(tmp_path / "best.pth").rest["epoch"] == 2
    fit(tmp_path, 5, [0.4, 0.5])  # epochs 4 and 5: none is better than 0.5
    assert read(tmp_path / "best.pth").rest["epoch"] == 2
    assert read(tmp_path / "last.pth").rest["epoch"] == 5
    fit(tmp_path, 6, [0.6])
    assert read(tmp_path / "best.pth").rest["epoch"] == 6


def test_an_older_training_ends_where_another_begins(tmp_path):
    """Its final checkpoint would pass for the new one's."""
    for name in ("last.pth", "best.pth", "checkpoint_final.pth"):
        (tmp_path / name).write_bytes(b"old")
    model = nn.Linear(1, 1)
    model.config = {"network": "refine", "num_classes": 1}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    training = Training(tmp_path, model, optimizer, MultiStepLR(optimizer, [1]), record(), CPU)
    assert not training.resume(overwrite=True)
    assert (tmp_path / "checkpoint_final.pth").exists()  # nothing goes before something comes
    training.end_epoch({"loss": 1.0})
    assert not (tmp_path / "checkpoint_final.pth").exists()
    assert read(tmp_path / "best.pth").rest["epoch"] == read(tmp_path / "last.pth").rest["epoch"]


def test_curves_have_a_point_for_each_epoch(tmp_path):
    fit(tmp_path, 3)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3]


def test_an_epoch_trains_and_a_prediction_does_not(tmp_path):
    """Whatever mode the network is in."""
    seen = []

    class Seen(nn.Linear):
        def forward(self, x):
            seen.append(self.training)
            return super().forward(x)

    model, batches = Seen(1, 1), batches_of(Figures(), 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    training = Training(tmp_path, model, optimizer, MultiStepLR(optimizer, [9]), record(), CPU)
    for _ in range(2):
        engine.train_epoch(model, batches, squared, training)
        list(engine.predict(model, batches, CPU, lambda network, batch: list(
            network(batch["image"])), "test"))
    assert seen == [True, False, True, False]


def test_a_score_of_zero_is_a_score(tmp_path):
    fit(tmp_path, 2, [0.0, 0.0])
    assert read(tmp_path / "best.pth").rest["epoch"] == 1


def test_best_is_written_before_last(tmp_path, monkeypatch):
    """Killed in between, the epoch is repeated; the other way round its best would be lost."""
    written = []
    monkeypatch.setattr("utils.checkpoint.save", lambda path, content: written.append(path.name))
    fit(tmp_path, 1)
    assert written == ["best.pth", "last.pth"]


def test_accumulated_batches_are_one_large_batch(tmp_path):
    one, _ = fit(tmp_path / "one", 3, batch=8)
    two, _ = fit(tmp_path / "two", 3, batch=4, accumulate=2)
    torch.testing.assert_close(one.weight, two.weight)


def test_resume_with_another_precision(tmp_path):
    plain, history = fit(tmp_path, 2)
    half = Runtime(torch.device("cpu"), 0, 1, torch.float16)
    assert half.scaler().is_enabled()
    _, longer = fit(tmp_path, 3, runtime=half)
    assert longer[:2] == history and math.isfinite(longer[2]["loss"])


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    """The loss of an epoch may be finite when the step after it is not."""
    fit(tmp_path, 1)
    before = {path: path.read_bytes() for path in tmp_path.glob("*.pth")}

    torch.manual_seed(0)
    model = nn.Linear(1, 1)
    model.config = {"network": "refine", "num_classes": 1}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    training = Training(tmp_path, model, optimizer, MultiStepLR(optimizer, [1]), record(), CPU)
    with torch.no_grad():
        model.weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="--lr"):
        training.end_epoch({"loss": 0.1})
    assert {path: path.read_bytes() for path in tmp_path.glob("*.pth")} == before


@pytest.mark.parametrize(("stretch", "epochs", "done", "minutes"),
                         [(20, 30, 0, 30), (40, 2, 20, 3)])
def test_the_first_steps_foretell_the_time_of_what_is_left(monkeypatch, stretch, epochs, done,
                                                           minutes):
    said: list[str] = []
    monkeypatch.setattr(loading.log, "info", lambda text, *args: said.append(text % args))
    clock = SimpleNamespace(monotonic=iter((100.0, 130.0)).__next__)
    monkeypatch.setattr(loading, "time", clock)
    order = ShuffledBatches(8, 2, seed=0, stretch=stretch)
    batches = DeviceBatches(torch.utils.data.DataLoader(Figures(), batch_sampler=order), CPU)
    batches.foretell, batches.done = epochs, done
    assert len(list(batches)) == stretch
    assert said == [f"3 s a batch: about {minutes} min in all, if validation takes none"]
    assert len(list(batches)) == stretch and len(said) == 1  # said once


def test_epochs_too_short_to_time_a_batch_foretell_the_time_as_well(tmp_path, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr("utils.training.log.info", lambda text, *args: said.append(text % args))
    fit(tmp_path, 3)
    assert [line for line in said if line.startswith("about ")] == [
        "about 0 s for the 2 epochs that are left"]


def test_two_passes_never_have_the_same_order():
    order = ShuffledBatches(10, 3, seed=0)
    passes = []
    for epoch in (1, 2):
        order.set_epoch(epoch)
        passes.append(list(order))
    assert [len(batch) for batch in passes[0]] == [3, 3, 3]
    assert len(order) == 3  # the incomplete batch is dropped
    indices = [[index for batch in batches for _, index in batch] for batches in passes]
    assert all(len(set(one)) == 9 for one in indices) and indices[0] != indices[1]
    numbers = [{number for batch in batches for number, _ in batch} for batches in passes]
    assert numbers == [{0}, {1}]
    other = ShuffledBatches(10, 3, seed=1)
    assert [index for batch in other for _, index in batch] != indices[0]


def test_stretches_follow_each_other_without_a_gap():
    """Positions of DeepLab's endless shuffle: every image once in a pass, passes end to end."""
    order = ShuffledBatches(5, 2, seed=3, stretch=3, total=7)
    keys = []
    for stretch in (1, 2, 3):
        order.set_epoch(stretch)
        keys += [key for batch in order for key in batch]
    assert len(order) == 1 and len(keys) == 14
    assert [number for number, _ in keys] == [0] * 5 + [1] * 5 + [2] * 4
    assert {index for _, index in keys[:5]} == {index for _, index in keys[5:10]} == set(range(5))


@pytest.mark.parametrize("world", [2, 3, 4, 7, 8])
def test_processes_share_each_batch(world):
    whole = list(ShuffledBatches(23, 8, seed=5))
    orders = [ShuffledBatches(23, 8, seed=5, rank=rank, world=world) for rank in range(world)]
    for batch, *shares in zip(whole, *orders, strict=True):
        assert batch == [key for share in shares for key in share]
        counts = [len(share) for share in shares]
        assert min(counts) >= 1 and max(counts) - min(counts) <= 1
        assert [order.weight for order in orders] == [count * world / 8 for count in counts]


@pytest.mark.parametrize("batch, lr, power, wanted", [
    (40, 1e-3, 1, "0.004"), (40, 1e-3, 0.5, "0.002"), (15, 2e-3, 1, "0.0015"), (10, 5e-3, 1, None),
    (5, 1e-3, 1, None), (40, 4e-3, 1, None)])
def test_a_larger_batch_has_its_learning_rate_suggested(monkeypatch, batch, lr, power, wanted):
    lines = []
    monkeypatch.setattr("utils.setup.log.info",
                        lambda text, *values: lines.append(text % values))
    suggest_lr(batch, 10, lr, 1e-3, power)
    assert len(lines) == (wanted is not None)
    if wanted:
        assert f"a learning rate of {wanted} " in lines[0] and f"stays at {lr:g}" in lines[0]


def test_fewer_images_in_a_batch_than_processes():
    with pytest.raises(UserError, match="batch of 2 leaves some of 3 processes.*--batch-size"):
        training_batches([0] * 9, 2, Runtime(torch.device("cpu"), 0, 3, None), 0, 0, None)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops(tmp_path, bad):
    class Broken(Figures):
        def __getitem__(self, key):
            return {"image": torch.tensor([bad]), "y": torch.zeros(1)}

    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    training = Training(tmp_path, model, optimizer, MultiStepLR(optimizer, [1]), record(), CPU)
    with pytest.raises(FloatingPointError, match="--lr"):
        engine.train_epoch(model, batches_of(Broken(), 4), squared, training)


def test_a_training_that_diverges_says_so(demo, tmp_path):
    message = stage_error("train_drs", "--data-root", demo, "--run-dir", tmp_path, *MACHINE,
                          *TRAINING, "--lr", "1e12")
    assert "--lr" in message
    assert not (tmp_path / "classifier" / "metrics.json").exists()


@pytest.mark.parametrize(("stage", "name"), [
    ("train_drs", "classifier"), ("make_localization_maps", "localization_maps")])
def test_the_record_is_of_the_run_that_made_the_results(demo, run, tmp_path, stage, name):
    """Neither a run that finds nothing to do nor one that is refused takes its place."""
    folder = Path(shutil.copytree(run, tmp_path / "run"))
    record = folder / "logs" / f"{name}.json"
    made = json.loads(record.read_text())
    assert made["seconds"] >= 0  # a tenth of a second may be enough
    training = TRAINING if stage == "train_drs" else ()
    common = ("--data-root", demo, "--run-dir", folder, *MACHINE, *training)
    run_stage(stage, *common)
    assert json.loads(record.read_text()) == made
    assert "--overwrite" in stage_error(stage, *common, "--image-size", "64")
    assert json.loads(record.read_text()) == made
    run_stage(stage, *common, "--overwrite")
    again = json.loads(record.read_text())
    assert again["began"] > made["began"] and again["seconds"] >= 0


def test_a_record_that_cannot_be_put_back_hides_no_error(tmp_path):
    """The disk may be full, which is what is being reported; and the locks must be released."""
    session = stage._Session()
    session.earlier, session.summary_path = "{}", tmp_path / "a file" / "record.json"
    session.summary_path.parent.touch()
    held = stage.hold_path(tmp_path / "lock", "folder")
    session.locks.append(held)
    session.close(completed=False)
    assert not held.is_locked
