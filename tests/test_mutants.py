"""The table of faults fits the code: each can be put in, and leaves code. See docs/testing.md."""

from collections import Counter

import pytest
from mutants.faults import ROOT, Fault, read_table

FAULTS = read_table()


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_fault_fits_the_code(fault: Fault) -> None:
    assert fault.old != fault.new and fault.why
    fault.check()


def test_faults_are_many_and_have_names_of_their_own() -> None:
    names = Counter(fault.name for fault in FAULTS)
    assert len(names) >= 160 and set(names.values()) == {1}


def test_fault_that_no_longer_fits_is_named() -> None:
    fault = Fault("old-fault", "models/drs.py", "why", "no such text", "")
    with pytest.raises(ValueError, match="old-fault: models/drs.py holds the text 0 times"):
        fault.check()


@pytest.mark.parametrize(("old", "begin"), [
    ("return F.avg_pool2d(x, x.shape[2:])", "return F.avg_pool2d("),
    ("and x.numel() > 0\n", "return (ENABLED and "),  # a statement of three lines
    ("def averages(x: Tensor) -> Tensor:", "if on_cpu(x):")])
def test_lines_of_a_fault(old: str, begin: str) -> None:
    fault = Fault("name", "models/suppression.py", "why", old, "")
    line, = fault.lines()
    assert (ROOT / fault.file).read_text(encoding="utf-8").splitlines()[line - 1].strip() \
        .startswith(begin)


def test_a_file_that_is_not_python_has_no_lines() -> None:
    assert not next(fault for fault in FAULTS if fault.file.endswith(".yaml")).lines()
