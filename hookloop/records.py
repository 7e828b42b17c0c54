"""What was run, with what and where: the files that a run directory begins with."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from datetime import UTC, datetime
from pathlib import Path, PurePath
from typing import BinaryIO

import yaml

from hookloop.durable import write_whole
from hookloop.errors import HookloopError

_SECRET = {
    "key", "keys", "apikey", "token", "secret", "secrets", "password", "passwords", "passwd", "pwd", "passphrase",
    "credential", "credentials", "authorization",
}  # fmt: skip
_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")
_GIT_SECONDS = 10


def masked(data: object) -> object:
    """Copy plain data with the values of keys that look secret replaced by ``***``.

    A key looks secret when one of its words is: ``api_key`` and ``accessToken`` do, ``monkey`` does not.
    Nulls and booleans are kept, since they give nothing away. Mappings come back as dicts, sequences as
    lists, paths as strings.
    """
    if isinstance(data, Mapping):
        return {key: "***" if _hides(key, value) else masked(value) for key, value in data.items()}
    if isinstance(data, Sequence | AbstractSet) and not isinstance(data, str | bytes):
        return [masked(value) for value in data]
    return str(data) if isinstance(data, PurePath) else data


def _hides(key: object, value: object) -> bool:
    return value is not None and not isinstance(value, bool) and _looks_secret(str(key))


def _looks_secret(key: str) -> bool:
    return any(word.lower() in _SECRET for word in _WORDS.findall(key))


def write_config(directory: Path, document: Mapping[str, object], plugins: Sequence[str]) -> None:
    """Write ``config.yaml``: the resolved configuration and the plugin list, so that it is the same run.

    Secrets are masked, so only those must be given again.

    :param document: the whole configuration as plain data, by section.
    :param plugins: the names in firing order, as ``--plugins`` takes them.
    """
    content = masked({"plugins": list(plugins), **{k: v for k, v in document.items() if k != "plugins"}})
    text = yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    _write(directory / "config.yaml", text)


class _Dumper(yaml.SafeDumper):
    """Writes what reads back the same where ``1e-4`` is a number, which PyYAML does not know."""

    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002 - aliases are refused when read
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style='"' if _reads_as_number(text) else None
    )


def _reads_as_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


_Dumper.add_representer(str, _represent_text)


def write_environment(directory: Path, hosts: Sequence[str] = ()) -> None:
    """Append this start to ``environment.json``: its ``starts`` tell how a run came about, resumes included.

    Environment variables are never written, and secrets on the command line are masked. A file that
    cannot be read as such is set aside as ``environment.json.damaged``.

    :param hosts: of several processes that train together, where each is, by rank.
    """
    path = directory / "environment.json"
    ranks = {"ranks": len(hosts), "hosts": list(hosts)} if len(hosts) > 1 else {}
    content = {"starts": [*_earlier_starts(path), {**environment(), **ranks}]}
    _write(path, json.dumps(content, indent=2, default=str) + "\n")


def _earlier_starts(path: Path) -> list[object]:
    if not path.exists():
        return []
    try:
        starts = json.loads(path.read_text(encoding="utf-8"))["starts"]
    except (ValueError, KeyError, TypeError):
        starts = None
    if isinstance(starts, list):
        return starts
    path.replace(path.with_name(path.name + ".damaged"))
    return []


def environment() -> dict[str, object]:
    """Tell versions, git revision, hardware and command line of this process."""
    return {
        "started": _now(),
        "command": mask_command(sys.argv),
        "directory": str(Path.cwd()),
        "hookloop": _version("hookloop"),
        "python": platform.python_version(),
        "torch": _version("torch"),
        "plugins": _plugin_distributions(),
        "git": _git(),
        "hardware": _hardware(),
    }


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _plugin_distributions() -> dict[str, str]:
    """Every installed distribution that offers plugins, with its version."""
    points = importlib.metadata.entry_points(group="hookloop")
    return {point.dist.name: point.dist.version for point in points if point.dist is not None}


def _git() -> dict[str, object] | None:
    """Revision of the working directory's repository, and whether tracked files differ from it."""
    revision = _ask_git("rev-parse", "HEAD")
    if revision is None:
        return None
    return {"revision": revision, "dirty": bool(_ask_git("status", "--porcelain", "--untracked-files=no"))}


def _ask_git(*arguments: str) -> str | None:
    git = shutil.which("git")
    if git is None:
        return None
    try:
        answer = subprocess.run(  # noqa: S603 - fixed words
            [git, *arguments], capture_output=True, text=True, timeout=_GIT_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()


def _hardware() -> dict[str, object]:
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "host": platform.node(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "memory_gib": round(memory / 2**30, 1),
        "gpus": gpus,
    }


def mask_command(arguments: Sequence[str]) -> list[str]:
    """Mask what looks secret in the words of a command line.

    That is ``a.token=x``, ``--set=a.token=x``, ``a={token: x}`` and ``--token x``.
    """
    before = ["", *arguments]
    return [
        "***" if _is_secret_flag(flag) and not argument.startswith("-") else _mask_assignment(argument)
        for flag, argument in zip(before, arguments, strict=False)
    ]


def _is_secret_flag(argument: str) -> bool:
    return argument.startswith("--") and "=" not in argument and _looks_secret(argument)


def _mask_assignment(argument: str) -> str:
    key, equals, value = argument.partition("=")
    if not equals:
        return argument
    if _looks_secret(key.rpartition(".")[2]):
        return f"{key}=***"
    if key.startswith("--"):  # --set=key=value
        return f"{key}={_mask_assignment(value)}"
    return f"{key}={_mask_yaml(value)}"


def _mask_yaml(value: str) -> str:
    try:
        data = yaml.safe_load(value)
    except yaml.YAMLError:
        return value
    hidden = masked(data) if isinstance(data, dict | list) else data
    return value if hidden == data else json.dumps(hidden, default=str)


def _write(path: Path, text: str) -> None:
    def write(file: BinaryIO) -> None:
        file.write(text.encode())

    try:
        write_whole(path, write)
    except OSError as problem:
        raise HookloopError(
            f"{path}: cannot be written ({problem.strerror}); choose another run.dir"
        ) from None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
