"""Small faults put into the code, one at a time: which do the tests notice?

    python -m tests.mutants                       all that have no result yet, two at a time
    python -m tests.mutants --survivors           those again that no test noticed
    python -m tests.mutants --module labelling    a part; --only NAME ... single ones, again

In: table.toml. Out: a line a fault, and a table at the end; WORK_DIR/results.json, from which an
interrupted run goes on. The working tree is never touched: each worker has a copy of its own.

A fault first meets the tests that name its function, then the test files that name its module, then
those that call its function, then slow tests; quick files before long ones. Who calls what, also in
the processes that tests start, is recorded once by --record (calls.json); test files of which
nothing is recorded count if they name the module. --near stops after the first of these groups that
there is. A run that takes far longer than it should counts as noticed.
"""

import argparse
import ast
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from tests.mutants.faults import ROOT, Fault, read_table

QUICK, SLOW = "not slow and not cuda", "slow and not cuda"
UNKNOWN = 60  # seconds, guessed where nothing is recorded
LIMIT = 300  # seconds, and three times what was recorded: the machine may be busy
# Lint and types are not behaviour; and the table fits no code but that without a fault.
LEFT_OUT = {"tests/test_house.py", "tests/test_mutants.py"}
USAGE, NOTHING_RUN = 4, 5  # pytest's exit statuses: no such test; no test was selected


class Copy:
    """A copy of the working tree in which one thing at a time is tried."""

    def __init__(self, folder: Path) -> None:
        self.root, self.scratch = folder / "tree", folder / "scratch"
        names = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT,
                               check=True, capture_output=True, text=True).stdout.splitlines()
        for name in names:
            if (ROOT / name).is_file():
                (self.root / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, self.root / name)
        for command in ("init -q", "add -A", "-c user.name=- -c user.email=- commit -qm -"):
            subprocess.run(["git", *command.split()], cwd=self.root, check=True)
        self.changes = 0
        self.output = folder / "output"
        self.server: Any = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("server.py")], cwd=self.root, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ | {
                "PYTHONPATH": str(self.root), "VIRTUAL_ENV": sys.prefix,
                "PATH": f"{sys.prefix}/bin{os.pathsep}{os.environ['PATH']}"})

    def pytest(self, files: Sequence[str], marks: str, seconds: float, *options: str,
               **environment: str) -> tuple[int | None, str]:
        """Exit status (None: the time was up) and output of pytest on some files or tests."""
        job = {"seconds": seconds, "environment": environment, "output": str(self.output),
               "arguments": ["-q", "--no-header", "-rfE", "-p", "no:cacheprovider", "--tb=line",
                             "-m", marks, f"--basetemp={self.scratch}", *options, *files]}
        self.server.stdin.write(json.dumps(job) + "\n")
        self.server.stdin.flush()
        status = json.loads(self.server.stdout.readline())
        return status, self.output.read_text(encoding="utf-8", errors="replace")

    def close(self) -> None:
        """End the server."""
        self.server.stdin.close()
        self.server.wait()

    def put(self, name: str, text: str) -> None:
        """Replace a file, under a time that no other version of it has had: of two versions with
        one time and size, Python would take the bytecode of either."""
        self.changes += 1
        path = self.root / name
        path.write_text(text, encoding="utf-8")
        os.utime(path, (self.changes, self.changes))


class Run:
    """What is known of tests and faults, kept in a folder."""

    def __init__(self, folder: Path, near: bool = False) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.near = near
        self.calls_file, self.results_file = folder / "calls.json", folder / "results.json"
        self.calls: dict[str, dict[str, Any]] = _read(self.calls_file)
        self.results: dict[str, dict[str, Any]] = _read(self.results_file)
        self.lock = threading.Lock()
        # As they are now: the working tree may change during the run.
        self.code = {fault.file: (ROOT / fault.file).read_text(encoding="utf-8")
                     for fault in read_table()}
        self.texts = {name: (ROOT / name).read_text(encoding="utf-8") for name in test_files()}

    def unrecorded(self) -> list[tuple[str, str]]:
        """(test file, marks) of which it is not known what they call."""
        units = [(name, marks) for marks in (QUICK, SLOW) for name in test_files()]
        return [(name, marks) for name, marks in units
                if self.calls.get(f"{name} {marks}", {}).get("digest") != _digest(name)]

    def record(self, copy: Copy, unit: tuple[str, str]) -> None:
        """Run a test file and note what it calls."""
        name, marks = unit
        shutil.copy(Path(__file__).with_name("calls.py"), copy.root / "sitecustomize.py")
        start = time.monotonic()
        with tempfile.TemporaryDirectory() as calls:
            status, output = copy.pytest([name], marks, 9 * LIMIT, DRS_CALLS=calls)
            called: dict[str, set[str]] = {}
            for path in Path(calls).iterdir():
                for line in path.read_text(encoding="utf-8").splitlines():
                    file, _, function = line.rpartition(" ")
                    called.setdefault(file, set()).add(function)
        seconds = round(time.monotonic() - start, 1)
        if status not in (0, NOTHING_RUN):  # by being watched?
            status, output = copy.pytest([name], marks, 9 * LIMIT)
        entry = {"digest": _digest(name), "seconds": seconds,
                 "status": status,
                 "calls": {file: sorted(names) for file, names in sorted(called.items())}}
        with self.lock:
            self.calls[f"{name} {marks}"] = entry
            _write(self.calls_file, self.calls)
        if status not in (0, NOTHING_RUN):
            print(f"{name} fails without any fault, and is left out:\n{output[-2000:]}")
        print(f"recorded {name} ({marks}): {entry['seconds']} s", flush=True)

    def concerned(self, fault: Fault) -> list[tuple[list[str], str, float]]:
        """Groups of tests that a fault meets, with marks and usual seconds, in this order: tests
        that name its function, files that name its module, files that call its function, slow
        tests of either."""
        groups: list[list[tuple[float, str]]] = [[], [], []]
        namers = naming(fault, self.texts)
        for name in self.texts:
            named = name in namers
            for marks in (QUICK, SLOW):
                entry = self.calls.get(f"{name} {marks}")
                if entry is not None and entry["digest"] != _digest(name):
                    entry = None  # of the file as it was
                if entry is not None and entry["status"] != 0:
                    continue
                if named or entry is not None and fault.file.endswith(".py") and \
                        fault.function() in entry["calls"].get(fault.file, ()):
                    groups[2 if marks == SLOW else 0 if named else 1].append(
                        (UNKNOWN if entry is None else entry["seconds"], name))
        files = [([name for _, name in sorted(group)], marks, sum(part[0] for part in group))
                 for group, marks in zip(groups, (QUICK, QUICK, SLOW), strict=True) if group]
        first = [f"{name}::{test}" for _, name in sorted(groups[0])
                 for test in mentioning(fault, self.texts[name])]
        return [(first, QUICK, files[0][2]), *files] if first else files

    def judge(self, copy: Copy, fault: Fault) -> None:
        """Put a fault into a copy, run the tests concerned, take it out again."""
        start, noticed, met = time.monotonic(), "", 0
        for files, marks, usual in self.concerned(fault)[:1 if self.near else None]:
            met += sum("::" not in name for name in files)
            if noticed := self.meet(copy, fault, files, marks, LIMIT + 3 * usual):
                break
        with self.lock:
            self.results[fault.name] = {
                "fault": _digest_of(fault), "noticed": noticed, "met": met, "near": self.near,
                "seconds": round(time.monotonic() - start)}
            _write(self.results_file, self.results)
            print(f"{len(self.results):4d}  {fault.name:32}"
                  f"{noticed or f'--- NOT NOTICED by {met} test files'}", flush=True)

    def meet(self, copy: Copy, fault: Fault, files: Sequence[str], marks: str, seconds: float
             ) -> str:
        """The test that notices the fault, or "". One that fails without the fault as well, on a
        busy machine say, does not count."""
        passed_over: list[str] = []
        while True:
            copy.put(fault.file, self.code[fault.file].replace(fault.old, fault.new))
            status, output = copy.pytest(files, marks, seconds, "-x", *passed_over)
            copy.put(fault.file, self.code[fault.file])
            if status in (0, NOTHING_RUN):
                return ""
            if status == USAGE:
                raise RuntimeError(output)
            failed = re.findall(r"^(?:FAILED|ERROR) (tests/\S+::.+?)(?: - .*)?$", output, re.M)
            if not failed:
                return "time" if status is None else "no test could be collected"
            if copy.pytest(failed[-1:], marks, seconds)[0] == 0:
                return failed[-1]
            passed_over.append(f"--deselect={failed[-1]}")

    def is_done(self, fault: Fault) -> bool:
        return self.results.get(fault.name, {}).get("fault") == _digest_of(fault)

    def table(self, faults: Sequence[Fault]) -> str:
        """How many faults of each module were noticed, and the names of the others."""
        judged = [fault for fault in faults if self.is_done(fault)]
        missed = [fault for fault in judged if not self.results[fault.name]["noticed"]]
        total, open_ = (Counter(fault.module for fault in some) for some in (judged, missed))
        lines = ["", "| where | faults | noticed |", "| --- | ---: | ---: |"]
        lines += [f"| {module} | {count} | {count - open_[module]} |"
                  for module, count in total.items()]
        lines += [f"| all | {len(judged)} | {len(judged) - len(missed)} "
                  f"({1 - len(missed) / max(1, len(judged)):.1%}) |", ""]
        lines += [f"not noticed: {fault.name} ({fault.file}): {fault.why}" for fault in missed]
        if len(judged) < len(faults):
            lines.append(f"not tried yet: {len(faults) - len(judged)}")
        return "\n".join(lines)


def test_files() -> list[str]:
    """The test files that faults meet."""
    names = (path.relative_to(ROOT).as_posix() for path in ROOT.glob("tests/test_*.py"))
    return sorted(set(names) - LEFT_OUT)


def naming(fault: Fault, texts: Mapping[str, str]) -> set[str]:
    """The test files (name -> text) that name the module, script or other file of a fault; where
    there is none, those that hold its bare name as a word, or else name its folder."""
    module = fault.file.removeprefix("DeepLab-V2-PyTorch/").rpartition(".")[0].replace("/", ".")
    package, _, last = module.rpartition(".")
    patterns = [re.escape(fault.file.rpartition("/")[2])]
    if fault.file.endswith(".py"):
        patterns += [rf"\b{module}\b", rf"from {package} import .*\b{last}\b"] if package else \
            [rf"\"{module}\""]
    for pattern in ("|".join(patterns), rf"\b{last}\b", rf"\b{package or module}\b"):
        if found := {name for name, text in texts.items() if re.search(pattern, text)}:
            return found
    return set(texts)


def mentioning(fault: Fault, text: str) -> list[str]:
    """The tests of a file whose text holds the function, class or constant of a fault."""
    pattern = "|".join(rf"\b{word}\b" for word in fault.words())
    return [node.name for node in ast.parse(text).body
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test")
            and re.search(pattern, ast.get_source_segment(text, node) or "")]


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _write(path: Path, value: object) -> None:
    new = path.with_suffix(".new")
    new.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    new.replace(path)


def _digest(name: str) -> str:
    return hashlib.sha256((ROOT / name).read_bytes()).hexdigest()[:16]


def _digest_of(fault: Fault) -> str:
    return hashlib.sha256(f"{fault.file}\0{fault.old}\0{fault.new}".encode()).hexdigest()[:16]


def share_out(work: Callable[[Copy, Any], None], items: Iterable[Any], jobs: int) -> None:
    """Do `work` on each item, with `jobs` copies of the working tree."""
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder, \
            ThreadPoolExecutor(jobs) as pool:
        free: SimpleQueue[Copy] = SimpleQueue()
        for number in range(jobs):
            free.put(Copy(Path(folder, str(number))))

        def one(item: Any) -> None:
            copy = free.get()
            try:
                work(copy, item)
            finally:
                free.put(copy)

        try:
            for result in [pool.submit(one, item) for item in items]:
                result.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
        finally:
            while not free.empty():
                free.get().close()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="at a time (default: 2)")
    parser.add_argument("--work-dir", type=Path, default=ROOT / "runs" / "mutants", metavar="DIR")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="these, again")
    parser.add_argument("--module", metavar="PREFIX", help="faults in files that begin so")
    parser.add_argument("--survivors", action="store_true", help="again those not noticed")
    parser.add_argument("--near", action="store_true", help="only the first group of tests")
    parser.add_argument("--record", action="store_true", help="record the tests' calls, no more")
    parser.add_argument("--table", action="store_true", help="show what is known, no more")
    args = parser.parse_args()
    run, faults = Run(args.work_dir, args.near), read_table()
    if args.module:
        faults = [fault for fault in faults if fault.file.startswith(args.module)]
    if unknown := set(args.only) - {fault.name for fault in faults}:
        parser.error(f"no fault {', '.join(sorted(unknown))}")
    if args.record:
        return share_out(run.record, run.unrecorded(), args.jobs)
    if not args.table:
        if args.only:
            todo = [fault for fault in faults if fault.name in args.only]
        elif args.survivors:
            todo = [fault for fault in faults
                    if run.is_done(fault) and not run.results[fault.name]["noticed"]]
        else:
            todo = [fault for fault in faults if not run.is_done(fault)]
        # In an order by chance, so that a run that ends early has seen all modules.
        share_out(run.judge, sorted(todo, key=_digest_of), args.jobs)
    print(run.table(faults))


if __name__ == "__main__":
    main()
