"""Small faults put into the code, one at a time: which do the tests notice?

    python -m tests.mutants                       all that have no result yet, two at a time
    python -m tests.mutants --seconds 30          each with no more than the quickest tests
    python -m tests.mutants --survivors           those again that no test noticed
    python -m tests.mutants --module labelling    a part; --only NAME ... single ones, again

In: table.toml. Out: a line a fault, and a table at the end; WORK_DIR/results.json, from which an
interrupted run goes on. The working tree is never touched: each worker has a copy of its own.

Which test executes which line, also in the processes that it starts, is recorded first, and again
when a test file has changed (WORK_DIR/record/). A fault meets the tests that execute its lines, the
quickest first and sooner those that name its function; in a file that is not Python, the test files
that name it. A run that takes far longer than it should counts as noticed.
"""

import argparse
import ast
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
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any
from xml.etree import ElementTree

from coverage import CoverageData

from tests.mutants.faults import ROOT, Fault, digest, read_table

LIMIT = 200  # seconds, and three times what was recorded: the machine may be busy
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

    def pytest(self, tests: Sequence[str], seconds: float, *options: str, **environment: str
               ) -> tuple[int | None, str]:
        """Exit status (None: the time was up) and output of pytest on some files or tests."""
        job = {"seconds": seconds, "environment": environment, "output": str(self.output),
               "arguments": ["-q", "--no-header", "-rfE", "-p", "no:cacheprovider", "--tb=line",
                             "-m", "not cuda", f"--basetemp={self.scratch}", *options, *tests]}
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


class Record:
    """What one test file was seen to execute."""

    def __init__(self, file: Path) -> None:
        self.seconds: dict[str, float] = _read(file)["seconds"]
        self.lines = None
        if file.with_suffix(".lines").is_file():
            self.lines = CoverageData(str(file.with_suffix(".lines")))
            self.lines.read()

    def executing(self, file: str, lines: Collection[int]) -> tuple[set[str], bool]:
        """The tests that execute one of the lines of a file, and whether it is executed outside of
        tests as well, by a fixture or at import: then it may concern any of them."""
        tests, outside = set[str](), False
        for measured in self.lines.measured_files() if self.lines else ():
            if measured.endswith(f"/tree/{file}"):
                contexts = self.lines.contexts_by_lineno(measured)
                for context in {one for line in lines for one in contexts.get(line, ())}:
                    # "TEST|run" in pytest's own process, "TEST (call)" in those it starts.
                    during = re.fullmatch(r"(.+)(?:\|run| \(call\))", context, re.S)
                    if during:
                        tests.add(during[1])
                    else:
                        outside = True
        return tests, outside


class Run:
    """What is known of tests and faults, kept in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "record"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.results_file = folder / "results.json"
        self.results: dict[str, dict[str, Any]] = _read(self.results_file)
        self.lock = threading.Lock()
        # As they are now: the working tree may change during the run.
        self.code = {fault.file: (ROOT / fault.file).read_text(encoding="utf-8")
                     for fault in read_table()}
        self.texts = {name: (ROOT / name).read_text(encoding="utf-8") for name in test_files()}
        self.records: dict[str, Record] = {}

    def unrecorded(self) -> list[str]:
        """The test files of which it is not known what they execute."""
        return [name for name in self.texts
                if _read(self._record_file(name)).get("digest") != digest(self.texts[name])]

    def record(self, copy: Copy, name: str) -> None:
        """Run a test file and note which lines each of its tests executes."""
        start, target = time.monotonic(), self._record_file(name)
        with tempfile.TemporaryDirectory() as scratch:
            config, times = str(copy.root / "tests" / "mutants" / "coveragerc"), f"{scratch}/times"
            status, output = copy.pytest(
                [name], 9 * LIMIT, "--cov", f"--cov-config={config}", "--cov-context=test",
                "--cov-report=", f"--junitxml={times}", "-o", "junit_family=xunit1",
                COVERAGE_FILE=f"{scratch}/lines", COVERAGE_PROCESS_START=config,
                MUTANTS_TREE=str(copy.root))
            if status not in (0, 1, NOTHING_RUN):
                raise RuntimeError(f"{name}: {output}")
            seconds = {}
            for case in ElementTree.parse(times).iter("testcase"):
                test = f"{name}::{case.get('name')}"
                if case.find("failure") is not None or case.find("error") is not None:
                    print(f"{test} fails without any fault, and is left out", flush=True)
                elif case.find("skipped") is None:
                    seconds[test] = float(case.get("time", 0))
            if Path(scratch, "lines").is_file():
                shutil.copy(Path(scratch, "lines"), target.with_suffix(".lines"))
        _write(target, {"digest": digest(self.texts[name]), "seconds": seconds})
        print(f"recorded {name}: {time.monotonic() - start:.0f} s", flush=True)

    def concerned(self, fault: Fault) -> list[tuple[str, float]]:
        """The tests that a fault meets, with their usual seconds, the quickest first. A test that
        names its function comes before others that take several times less, one that executes a
        line of it before those whose file does so in a fixture or at import, and of these such as
        name its module before such as do not."""
        found: list[tuple[float, str, float]] = []
        namers, lines = naming(fault, self.texts), fault.lines()
        for name, text in self.texts.items():
            if name not in self.records:
                self.records[name] = Record(self._record_file(name))
            record, named = self.records[name], name in namers
            direct, outside = record.executing(fault.file, lines)
            outside |= named and not lines
            mentioned = mentioning(fault, text) if named else ()
            for test, seconds in record.seconds.items():
                if test.removeprefix(f"{name}::").partition("[")[0] in mentioned:
                    distance = 0
                elif test in direct:
                    distance = 1
                elif outside:
                    distance = 2 if named else 3
                else:
                    continue
                found.append(((seconds + 0.1) * 5 ** distance, test, seconds))
        return [(test, seconds) for _, test, seconds in sorted(found)]

    def _record_file(self, name: str) -> Path:
        return self.folder / Path(name).with_suffix(".json").name

    def judge(self, copy: Copy, fault: Fault, limit: float) -> None:
        """Put a fault into a copy, run the tests concerned, take it out again."""
        start, noticed, met = time.monotonic(), "", 0
        for tests, usual in portions(self.concerned(fault), limit):
            met += len(tests)
            if noticed := self.meet(copy, fault, tests, LIMIT + 3 * usual):
                break
        with self.lock:
            self.results[fault.name] = {
                "fault": fault.digest(), "noticed": noticed, "met": met,
                "seconds": round(time.monotonic() - start)}
            _write(self.results_file, self.results)
            print(f"{len(self.results):4d}  {fault.name:32}"
                  f"{noticed or f'--- NOT NOTICED by {met} tests'}", flush=True)

    def meet(self, copy: Copy, fault: Fault, tests: Sequence[str], seconds: float) -> str:
        """The test that notices the fault, or "". It must pass without the fault, and fail again
        with it: one that fails now and then, on a busy machine say, does not count."""
        passed_over: list[str] = []
        while True:
            status, output = self.with_fault(copy, fault, tests, seconds, "-x", *passed_over)
            if status in (0, NOTHING_RUN):
                return ""
            if status == USAGE and "ERROR: not found" in output:
                raise RuntimeError(output)
            failed = re.findall(r"^(?:FAILED|ERROR) (tests/\S+::.+?)(?: - .*)?$", output, re.M)
            if not failed:
                return "time" if status is None else "no test could be collected"
            test = failed[-1:]
            if copy.pytest(test, seconds)[0] == 0 != self.with_fault(copy, fault, test, seconds)[0]:
                return failed[-1]
            passed_over.append(f"--deselect={failed[-1]}")

    def with_fault(self, copy: Copy, fault: Fault, tests: Sequence[str], seconds: float,
                   *options: str) -> tuple[int | None, str]:
        """`copy.pytest` while the fault is in the copy."""
        copy.put(fault.file, self.code[fault.file].replace(fault.old, fault.new))
        try:
            return copy.pytest(tests, seconds, *options)
        finally:
            copy.put(fault.file, self.code[fault.file])

    def is_done(self, fault: Fault) -> bool:
        return self.results.get(fault.name, {}).get("fault") == fault.digest()

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


def portions(tests: Iterable[tuple[str, float]], limit: float
             ) -> Iterator[tuple[list[str], float]]:
    """(tests, seconds) in portions that grow: few starts of pytest, and a first answer soon. Tests
    beyond `limit` seconds in all are left out."""
    portion, seconds, total, size = [], 0.0, 0.0, 10.0
    for test, usual in tests:
        total += usual
        if total > limit:
            break
        portion.append(test)
        seconds += usual
        if seconds > size:
            yield portion, seconds
            portion, seconds, size = [], 0.0, 3 * size
    if portion:
        yield portion, seconds


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
    parser.add_argument("--seconds", type=float, default=float("inf"), metavar="S",
                        help="a fault meets only the first tests, that take so long in all")
    parser.add_argument("--record", action="store_true", help="record what tests execute, no more")
    parser.add_argument("--table", action="store_true", help="show what is known, no more")
    args = parser.parse_args()
    run, faults = Run(args.work_dir), read_table()
    if args.module:
        faults = [fault for fault in faults if fault.file.startswith(args.module)]
    if unknown := set(args.only) - {fault.name for fault in faults}:
        parser.error(f"no fault {', '.join(sorted(unknown))}")
    if not args.table:
        share_out(run.record, run.unrecorded(), args.jobs)
    if not args.table and not args.record:
        if args.only:
            todo = [fault for fault in faults if fault.name in args.only]
        elif args.survivors:
            todo = [fault for fault in faults
                    if run.is_done(fault) and not run.results[fault.name]["noticed"]]
        else:
            todo = [fault for fault in faults if not run.is_done(fault)]
        # In an order by chance, so that a run that ends early has seen all modules.
        share_out(partial(run.judge, limit=args.seconds), sorted(todo, key=Fault.digest), args.jobs)
    print(run.table(faults))


if __name__ == "__main__":
    main()
