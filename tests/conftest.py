"""Settings of every test: no user cache is touched, and Ctrl-C works as at a terminal."""

import os
import signal

os.environ["BOOT_KERNEL_CACHE"] = "off"  # tests of the cache set it to a file of their own

# A shell's background jobs ignore it, and what they start inherits that; a run that is to be
# interrupted would then go on for hours.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
