"""The errors a user is meant to read: one line each, no traceback."""

from __future__ import annotations


class HookloopError(Exception):
    """The user's mistake: the message says what was found, what was expected, where and what to do.

    The command line prints it and exits with :attr:`code`.
    """

    code = 2


class ConfigError(HookloopError):
    """Everything wrong with a configuration, a line per problem."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class Diverged(HookloopError):  # noqa: N818 - it says what happened
    """Training left the finite numbers: nobody's typing mistake, so the exit code is that of a crash."""

    code = 1


class PeerLost(HookloopError):  # noqa: N818 - it says what happened
    """Another of several processes has ended or hangs: a consequence, whose cause is told there."""

    code = 1


class Told(HookloopError):  # noqa: N818 - it says what happened
    """What people have been told already; only the exit code is left to answer."""

    def __init__(self, code: int) -> None:
        super().__init__("told above")
        self.code = code
