"""Keeping what solvers print off the results."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Send all that is printed meanwhile to stderr, by libraries in C too, whatever their log settings are.

    HiGHS writes some lines past its log option. Descriptor 1 belongs to the whole process, so other threads
    should not print meanwhile. Where it or stderr is closed nothing is done.
    """
    sys.stdout.flush()
    try:
        kept = os.dup(1)
    except OSError:
        yield
        return
    try:
        os.dup2(2, 1)
    except OSError:
        os.close(kept)
        yield
        return
    try:
        yield
    finally:
        sys.stdout.flush()
        # what C still holds in its buffer would come out on stdout later
        ctypes.CDLL(None).fflush(None)
        os.dup2(kept, 1)
        os.close(kept)
