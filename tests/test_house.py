"""The rules of the house: who may import whom, file length, no copies, ruff."""

import ast
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import ROOT

DEEPLAB = ROOT / "DeepLab-V2-PyTorch"
ROOMS = {"models", "datasets", "labelling", "fetching", "reporting", "utils"}
SCRIPTS = sorted(ROOT.glob("*.py"))
SOURCES = sorted(path for path in ROOT.rglob("*.py") if not any(
    part in ("runs", "data", "tests", "__pycache__") or part.startswith(".")
    for part in path.relative_to(ROOT).parts))
# Lines of a file, and of a run that two files may share.
MAX_LINES, MAX_TEST_LINES, MAX_COPIED, MAX_PARAMETERS = 300, 800, 8, 8


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(path: Path) -> set[str]:
    """The dotted names of all modules that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name(path)}: relative import"
            # `from utils import options` names a module as well
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names
                                      if (ROOT / node.module.replace(".", "/")).is_dir()}
    return found


def tops(path: Path) -> set[str]:
    """The top-level packages that a file imports."""
    return {module.partition(".")[0] for module in imports(path)}


def room(folder: str) -> list[Path]:
    return [path for path in SOURCES if name(path).startswith(f"{folder}/")]


def test_the_rules_have_something_to_look_at():
    assert {"train_drs.py", "models/drs.py", "utils/engine.py", "datasets/voc.py"} <= {
        name(path) for path in SOURCES}
    assert "utils.options" in imports(ROOT / "train_drs.py")
    assert {"torch", "models"} <= tops(ROOT / "train_drs.py")


def test_models_import_torch_only():
    for path in room("models"):
        outside = {top for top in tops(path) if top not in sys.stdlib_module_names}
        assert outside <= {"torch", "torchvision", "models"}, name(path)


def test_models_and_datasets_do_not_import_each_other():
    for path in room("datasets"):
        assert not tops(path) & {"models", *(script.stem for script in SCRIPTS)}, name(path)


def test_utils_and_labelling_import_nothing_above_them():
    above = {"datasets", *(script.stem for script in SCRIPTS)}
    for path in room("labelling"):
        assert not tops(path) & {"models", *above}, name(path)
    for path in room("utils"):
        assert not tops(path) & {"labelling", *above}, name(path)


def test_scripts_do_not_import_each_other():
    stems = {script.stem for script in SCRIPTS}
    for path in SCRIPTS:
        assert not tops(path) & stems, name(path)


def test_the_engine_knows_only_logging():
    ours = {module for module in imports(ROOT / "utils" / "engine.py")
            if module.partition(".")[0] in ROOMS}
    assert ours == {"utils.logging"}


def test_deeplab_has_no_rooms_of_the_root():
    if not DEEPLAB.is_dir():
        pytest.skip("there is no DeepLab-V2-PyTorch here")
    assert not {path.stem for path in DEEPLAB.iterdir()} & ROOMS
    for path in room("DeepLab-V2-PyTorch"):
        assert not tops(path) & {script.stem for script in SCRIPTS}, name(path)


def test_files_are_not_long():
    limits = dict.fromkeys(SOURCES, MAX_LINES) | dict.fromkeys(
        (ROOT / "tests").glob("*.py"), MAX_TEST_LINES)
    long = {name(path): lines for path, limit in limits.items()
            if (lines := len(path.read_text(encoding="utf-8").splitlines())) > limit}
    assert not long


def test_no_function_has_many_parameters():
    many = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                arguments = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
                count = len([a for a in arguments if a.arg not in ("self", "cls", "ctx")])
                if count > MAX_PARAMETERS:
                    many.append(f"{name(path)}: {node.name} has {count}")
    assert not many


def modules() -> dict[str, Path]:
    """Dotted name -> file, of the root's packages."""
    return {name(path).removesuffix(".py").replace("/", "."): path for path in SOURCES
            if path.parent.name in ROOMS}


def test_no_circle_of_imports():
    """Among files, imports inside functions included."""
    known = modules()
    graph = {module: imports(path) & known.keys() for module, path in known.items()}
    done: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, " -> ".join((*above, module))
        if module not in done:
            for other in graph[module]:
                visit(other, (*above, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_nothing_below_reports():
    for folder in ("models", "datasets", "labelling", "utils", "fetching"):
        for path in room(folder):
            assert "reporting" not in tops(path), name(path)


def test_every_file_says_what_it_is():
    missing = [name(path) for path in SOURCES if path.stat().st_size
               and not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))]
    assert not missing


def substance(path: Path) -> list[str]:
    """The lines of a file that say something: no blanks, comments, imports, lone brackets."""
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if any(char.isalnum() for char in line)
            and not line.startswith(("#", "import ", "from "))]


def windows(path: Path) -> Iterator[tuple[str, ...]]:
    lines = substance(path)
    return (tuple(lines[i:i + MAX_COPIED]) for i in range(len(lines) - MAX_COPIED + 1))


def copies(paths: list[Path]) -> list[str]:
    """Runs of MAX_COPIED lines that stand in two files, or twice in one."""
    seen: dict[tuple[str, ...], Path] = {}
    found = []
    for path in paths:
        for window in windows(path):
            if window in seen:
                found.append(f"{path.name} and {seen[window].name}: {window[0]}")
            seen[window] = path
    return found


def test_nothing_stands_twice():
    assert not copies(SOURCES)


def test_a_copy_would_be_found(tmp_path):
    (tmp_path / "a.py").write_text((ROOT / "labelling" / "maps.py").read_text())
    assert copies([ROOT / "labelling" / "maps.py", tmp_path / "a.py"])


def test_nothing_runs_at_import():
    """A module's top level defines; calls are for `if __name__ == "__main__"`."""
    for path in SCRIPTS:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            assert not isinstance(node, ast.Expr | ast.For | ast.While | ast.With) or isinstance(
                getattr(node, "value", None), ast.Constant), f"{name(path)}:{node.lineno}"


def test_types():
    """mypy, standard settings (pyproject.toml), on what is not a test."""
    pytest.importorskip("mypy", reason="mypy is not installed")
    scripts = [path.name for path in SCRIPTS]
    for arguments, path in ((sorted([*scripts, *ROOMS]), ""),
                            (["main.py", "libs"], "DeepLab-V2-PyTorch")):
        done = subprocess.run([sys.executable, "-m", "mypy", "--config-file",
                               str(ROOT / "pyproject.toml"), *arguments], cwd=ROOT / path,
                              env=os.environ | {"MYPYPATH": str(ROOT)}, capture_output=True,
                              text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_ruff():
    if importlib.util.find_spec("ruff") is None:
        pytest.skip("ruff is not installed")
    done = subprocess.run([sys.executable, "-m", "ruff", "check", "--no-cache", "."], cwd=ROOT,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
