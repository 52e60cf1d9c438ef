"""Threads of torch wait for each other for 100 microseconds, then sleep, as in a served model.

Imported before torch, whose OpenMP library reads its environment once.  By default they wait for
10 milliseconds, and on the cores of a test run somebody else always has work: a small model of
transformers takes ten times as much processor time then.
"""

import os

os.environ.setdefault("GOMP_SPINCOUNT", "4000")
