"""Settings of every test: no user cache is touched, and Ctrl-C works as at a terminal."""

import os
import signal

os.environ["BOOT_KERNEL_CACHE"] = "off"  # tests of the cache set it to a file of their own

# Several test processes share the cores: one thread in each unless the caller says otherwise.
# `pytest -n 0` runs in one process with all threads. Tests of threads set their number themselves.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# A shell's background jobs ignore it, and what they start inherits that; a run that is to be
# interrupted would then go on for hours.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
