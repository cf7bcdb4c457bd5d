"""Settings of every test: nothing is read from, or written to, the user's own cache."""

import os

os.environ["BOOT_KERNEL_CACHE"] = "off"  # tests of the cache set it to a file of their own
