"""Checkpoints that a run has announced as saved, which must be there from then on whatever happens."""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from hookloop import files

if TYPE_CHECKING:
    from collections.abc import Iterator

    from faults.disk import Tree

_LOG = "run/log.jsonl"


def announced(tree: Tree) -> dict[str, int]:
    """The last step that was announced for each checkpoint, by its path, in the log of a run."""
    found = {}
    for line in (tree.get(_LOG) or b"").splitlines():
        if b'"checkpoint.saved"' not in line:
            continue
        try:
            event = json.loads(line)
        except ValueError:  # torn by the crash
            continue
        found[event["path"]] = int(event["step"])
    return found


def broken(promises: dict[str, int], tree: Tree) -> Iterator[str]:
    """Say which announced checkpoints are not in *tree*, or are older than announced."""
    with tempfile.TemporaryDirectory() as directory:
        for path, step in promises.items():
            content = tree.get(path)
            if content is None:
                yield f"{path} of step {step} was announced as saved, and is gone"
                continue
            copy = Path(directory) / "copy.ckpt"
            copy.write_bytes(content)
            try:
                held = files.load(copy)["progress"]["step"]  # type: ignore[index]
            except files.DamagedError as error:
                yield f"{path} of step {step} was announced as saved, and is damaged: {error}"
                continue
            if held < step:
                yield f"{path} of step {step} was announced as saved, and is of step {held}"


def failed(text: str) -> set[str]:
    """The files that a run said it could not write, by name below its directory."""
    return set(re.findall(r" WARNING (?:checkpoint\.failed|figure\.unwritten) path=run/(\S+)", text))
