"""The version of boot, kept here alone."""

__version__ = "0.1.0"
