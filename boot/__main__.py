"""`python -m boot` is the same as the command `boot`."""

import sys

from boot.cli import main

sys.exit(main())
