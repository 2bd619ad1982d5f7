"""The table of faults: what each changes, and whether it still fits the code."""

import ast
import re
from dataclasses import dataclass
from hashlib import sha256
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

    def digest(self) -> str:
        """Changes with the fault."""
        return digest(f"{self.file}\0{self.old}\0{self.new}")

    def lines(self) -> set[int]:
        """The lines, from 1, by whose execution one knows that the fault was met: where the
        statements begin that it changes; of a function's head, the first of its body. None in a
        file that is not Python."""
        if not self.file.endswith(".py"):
            return set()
        tree, changed = self._tree_and_changed_lines()
        statements = [node for node in ast.walk(tree) if isinstance(node, ast.stmt)]
        lines = set()
        for line in changed or (changed.start,):
            inside = [node for node in statements if node.lineno <= line <= (node.end_lineno or 0)]
            if inside:
                innermost = max(inside, key=lambda node: (node.lineno, -(node.end_lineno or 0)))
                if isinstance(innermost, ast.FunctionDef):  # but a docstring is not executed
                    innermost = innermost.body[ast.get_docstring(innermost) is not None]
                lines.add(innermost.lineno)
        return lines

    def around(self) -> list[ast.ClassDef | ast.FunctionDef]:
        """The classes and functions that the fault is in, the outermost first."""
        tree, changed = self._tree_and_changed_lines()
        line = changed.start
        found = [node for node in ast.walk(tree)
                 if isinstance(node, (ast.ClassDef, ast.FunctionDef))
                 and node.lineno <= line <= (node.end_lineno or 0)
                 # Defaults and decorators are evaluated where the function is defined.
                 and (isinstance(node, ast.ClassDef) or line >= node.body[0].lineno)]
        return sorted(found, key=lambda node: node.lineno)

    def words(self) -> list[str]:
        """What a test may call it by: functions, classes, or the word that the line begins with."""
        around = self.around() if self.file.endswith(".py") else []
        names = [node.name.strip("_") for node in around]
        return [name for name in names if name not in COMMON] or \
            re.findall(r"\w\w\w+", self.old)[:1]

    def _tree_and_changed_lines(self) -> tuple[ast.Module, range]:
        """The code, and the lines of it, from 1, that change; an empty range where some are put in
        between others."""
        text = (ROOT / self.file).read_text(encoding="utf-8")
        pairs = zip(self.old.split("\n"), self.new.split("\n"), strict=False)
        same = next((i for i, (before, after) in enumerate(pairs) if before != after),
                    self.new.count("\n"))
        first = text[:text.index(self.old)].count("\n") + 1
        return ast.parse(text), range(first + same, first + self.old.rstrip("\n").count("\n") + 1)


def digest(text: str) -> str:
    """Changes with the text."""
    return sha256(text.encode()).hexdigest()[:16]


def read_table() -> list[Fault]:
    """All faults, file by file."""
    table = tomllib.loads(TABLE.read_text(encoding="utf-8"))
    return [Fault(file=file, **entry) for file, entries in table.items() for entry in entries]
