"""The version of this package."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("bge-cocktail")
except PackageNotFoundError:  # a checkout that isn't installed
    __version__ = "0"
