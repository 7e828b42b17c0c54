"""An event-driven training loop made of plugins on pluggy hook registries."""

from hookloop.core import Run, train
from hookloop.hookspecs import hookimpl
from hookloop.task import Data, Task

__version__ = "0.1.0"
__all__ = ["Data", "Run", "Task", "__version__", "hookimpl", "train"]
