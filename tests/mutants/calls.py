"""Writes down which functions of the project are called in this process and those it starts.

A copy of this file is `sitecustomize.py` in the root of the tree that is watched: Python imports it
at its start, since the root is on PYTHONPATH. In: the folder DRS_CALLS. Out: a file there for each
process, a line "FILE NAME" for each function.
"""

import os
import sys
import threading

ROOT = os.path.dirname(os.path.abspath(__file__)) + os.sep
folder = os.environ.get("DRS_CALLS")
seen = {}  # by id, and kept: else another one might get the id


def note(frame, event, _):
    code = frame.f_code
    if id(code) not in seen:
        seen[id(code)] = code
        if code.co_filename.startswith(ROOT):
            with open(f"{folder}/{os.getpid()}", "a", encoding="utf-8") as file:
                file.write(f"{code.co_filename[len(ROOT):]} {code.co_name}\n")


if folder:
    threading.settrace(note)
    sys.settrace(note)
