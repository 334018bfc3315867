"""Whatever is printed while a solver runs stays off stdout."""

from __future__ import annotations

import json
import subprocess
import sys

PROGRAM = """
import ctypes, json, os
from dse.quiet import stdout_to_stderr

c = ctypes.CDLL(None)
with stdout_to_stderr():
    print("from Python")
    os.write(1, b"straight to the descriptor\\n")
    c.puts(b"from the buffer of C")
print(json.dumps({"answer": 1}))
"""


def test_stdout_has_the_document_alone() -> None:
    run = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert json.loads(run.stdout) == {"answer": 1}
    for text in ("from Python", "straight to the descriptor", "from the buffer of C"):
        assert text in run.stderr


def test_stdout_is_back_after_an_error() -> None:
    program = """
from dse.quiet import stdout_to_stderr
try:
    with stdout_to_stderr():
        raise ValueError
except ValueError:
    print("after")
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout == "after\n"
