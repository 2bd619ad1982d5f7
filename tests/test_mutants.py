"""The table of faults fits the code: each can be put in, and leaves code. See docs/testing.md."""

from collections import Counter

import pytest
from mutants.faults import Fault, read_table

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


def test_function_of_a_fault() -> None:
    places = {fault.name: fault.function() for fault in FAULTS if fault.file.endswith(".py")}
    assert places["drs-fixed-no-relu"] == "forward"
    assert places["labels-threshold"] == "<module>"
