"""The table of faults: what each changes, and whether it still fits the code."""

import ast
import re
from dataclasses import dataclass
from pathlib import Path

import yaml

try:
    import tomllib
except ImportError:  # Python 3.10
    import tomli as tomllib  # type: ignore[no-redef]

ROOT = Path(__file__).resolve().parents[2]
TABLE = Path(__file__).with_name("table.toml")
COMMON = {"main", "forward", "init", "call", "parse", "run", "add", "of", "train"}  # say little


@dataclass(frozen=True)
class Fault:
    """One small fault: in `file`, `old`, which stands there once, becomes `new`."""

    name: str
    file: str
    why: str
    old: str
    new: str

    @property
    def module(self) -> str:
        """The folder that it is counted under."""
        return self.file.split("/")[0] if "/" in self.file else "scripts"

    def applied(self, root: Path = ROOT) -> str:
        """The text of the file with the fault in it.

        Raises:
            ValueError: the text to replace does not stand there just once.
        """
        text = (root / self.file).read_text(encoding="utf-8")
        if text.count(self.old) != 1:
            raise ValueError(f"{self.name}: {self.file} holds the text {text.count(self.old)} "
                             "times, not once")
        return text.replace(self.old, self.new)

    def check(self) -> None:
        """Raise an error unless the fault fits the code and leaves it code."""
        text = self.applied()
        if self.file.endswith(".py"):
            compile(text, self.file, "exec")
        elif self.file.endswith(".yaml"):
            yaml.safe_load(text)

    def around(self) -> list[ast.ClassDef | ast.FunctionDef]:
        """The classes and functions that the fault is in, the outermost first."""
        text = (ROOT / self.file).read_text(encoding="utf-8")
        line = text[:text.index(self.old)].count("\n") + 1 + self._first_change()
        found = [node for node in ast.walk(ast.parse(text))
                 if isinstance(node, (ast.ClassDef, ast.FunctionDef))
                 and node.lineno <= line <= (node.end_lineno or 0)
                 # Defaults and decorators are evaluated where the function is defined.
                 and (isinstance(node, ast.ClassDef) or line >= node.body[0].lineno)]
        return sorted(found, key=lambda node: node.lineno)

    def function(self) -> str:
        """The name of the function that the fault is in; "<module>" if it is in none."""
        names = [node.name for node in self.around() if isinstance(node, ast.FunctionDef)]
        return names[-1] if names else "<module>"

    def words(self) -> list[str]:
        """What a test may call it by: functions, classes, or the word that the line begins with."""
        around = self.around() if self.file.endswith(".py") else []
        names = [node.name.strip("_") for node in around]
        return [name for name in names if name not in COMMON] or \
            re.findall(r"\w\w\w+", self.old)[:1]

    def _first_change(self) -> int:
        """The first line of `old`, from 0, that changes."""
        pairs = zip(self.old.split("\n"), self.new.split("\n"), strict=False)
        return next((i for i, (before, after) in enumerate(pairs) if before != after),
                    self.new.count("\n"))


def read_table() -> list[Fault]:
    """All faults, file by file."""
    table = tomllib.loads(TABLE.read_text(encoding="utf-8"))
    return [Fault(file=file, **entry) for file, entries in table.items() for entry in entries]
