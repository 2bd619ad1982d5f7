"""Put in the root of a copy while a run is recorded: writes down which functions are called.

Python imports it at its start, since the root is on PYTHONPATH, also in the processes that tests
start. In: the folder DRS_CALLS. Out: a file for each process, a line "FILE NAME" for each function.
"""

import os
import sys
import threading

ROOT = os.path.dirname(os.path.abspath(__file__)) + os.sep
folder = os.environ.get("DRS_CALLS")
seen = {}  # by id, and kept: else another one might get the id


def note(frame, event, _):  # noqa: ANN001, ANN201
    code = frame.f_code
    if id(code) not in seen:
        seen[id(code)] = code
        if code.co_filename.startswith(ROOT):
            with open(f"{folder}/{os.getpid()}", "a", encoding="utf-8") as file:
                file.write(f"{code.co_filename[len(ROOT):]} {code.co_name}\n")


if folder:
    threading.settrace(note)
    sys.settrace(note)
