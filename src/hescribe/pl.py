"""The figures under the short name that scanpy's users type: ``hescribe.pl``."""

from hescribe.plots import *  # noqa: F403 - exactly the names that plots lists
from hescribe.plots import __all__  # noqa: F401
