"""Tests side by side (``pytest -n auto``) take one thread each: threads of several processes wait for one another."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported, and by processes that tests start
