"""What a disk holds after a power cut: the worst that POSIX allows, rebuilt from the record of operations.

A write is sure once its file was synced, and a name once its directory was synced after it was made, moved or
removed. Whatever is not sure may survive or not. Two extremes bound what can be found afterwards, and a third
imitates file systems that keep the length of a file whose contents they have lost.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from attrs import define, field

from faults.shim import Operation, Record

if TYPE_CHECKING:
    from collections.abc import Iterable

Survivors = Literal["all", "lost", "kept", "zeroed"]
"""``all``: everything, as after a kill. ``lost``: nothing that is not sure. ``kept``: names are kept, contents
that are not sure are lost, so that files may be empty. ``zeroed``: names and lengths are kept, such contents are
zeros."""


@define(eq=False)
class File:
    """Contents now, and those that are sure."""

    now: bytearray = field(factory=bytearray)
    sure: bytes = b""
    shortest: int = 0
    """The least length since the last sync."""

    def write(self, offset: int, data: bytes) -> None:
        """Write as a process does."""
        self.now.extend(bytes(max(0, offset - len(self.now))))
        self.now[offset : offset + len(data)] = data

    def cut(self, length: int) -> None:
        """Truncate or extend."""
        del self.now[length:]
        self.now.extend(bytes(length - len(self.now)))
        self.shortest = min(self.shortest, length)

    def sync(self) -> None:
        """Make what there is now sure."""
        self.sure, self.shortest = bytes(self.now), len(self.now)

    def after(self, survivors: Survivors) -> bytes:
        """What is read after the power cut."""
        if survivors == "all":
            return bytes(self.now)
        if survivors == "lost":
            return self.sure
        kept = self.sure[: self.shortest]
        return kept if survivors == "kept" else kept.ljust(len(self.now), b"\0")[: len(self.now)]


@define(eq=False)
class Folder:
    """Names now, and those that are sure."""

    now: dict[str, Node] = field(factory=dict)
    sure: dict[str, Node] = field(factory=dict)

    def sync(self) -> None:
        """Make the names of now sure, though not what they stand for."""
        self.sure = dict(self.now)

    def after(self, survivors: Survivors) -> dict[str, Node]:
        """What is listed after the power cut."""
        return self.sure if survivors == "lost" else self.now


Node: TypeAlias = File | Folder
Tree: TypeAlias = dict[str, bytes | None]
"""Contents by path below the top, ``None`` for a directory."""


@define(eq=False)
class Disk:
    """A directory and everything below it, as a process has changed it."""

    top: Path
    root: Folder = field(factory=Folder)
    opened: dict[int, Node] = field(factory=dict)
    """By descriptor."""

    @classmethod
    def replay(cls, top: Path, records: Iterable[Record], before: Tree | None = None) -> Disk:
        """Do again what was recorded below *top*, where *before* was sure already."""
        disk = cls(top)
        for path, content in sorted((before or {}).items()):
            node: Node = Folder() if content is None else File(bytearray(content), content, len(content))
            folder, name = disk._place(str(top / path))
            folder.now[name] = folder.sure[name] = node
        for record in records:
            disk.do(record)
        return disk

    def do(self, record: Record) -> None:
        """Do one operation."""
        match record.operation:
            case Operation.OPEN | Operation.LOOK:
                self._open(record)
            case Operation.WRITE:
                self._file(record).write(record.number, record.data)
            case Operation.SYNC:
                self.opened[record.descriptor].sync()
            case Operation.CLOSE:
                self.opened.pop(record.descriptor, None)
            case Operation.TRUNCATE:
                self._file(record).cut(record.number)
            case Operation.MKDIR:
                self._name(record.first, Folder())
            case Operation.LINK:
                self._name(record.second, self._node(record.first))
            case Operation.UNLINK | Operation.RMDIR:
                self._forget(record.first)
            case Operation.RENAME:
                self._rename(record)

    def _open(self, record: Record) -> None:
        folder, name = self._place(record.first)
        if not name:
            self.opened[record.descriptor] = folder
            return
        node = folder.now.get(name)
        if node is None:
            node = folder.now[name] = File()
        elif isinstance(node, File) and record.number & os.O_TRUNC:
            node.cut(0)
        self.opened[record.descriptor] = node

    def _rename(self, record: Record) -> None:
        if record.number:
            raise NotImplementedError(f"rename with flags {record.number}")
        node = self._node(record.first)
        folder, name = self._place(record.second)
        if folder.now.get(name) is node:  # two names of one file: nothing happens, says POSIX
            return
        self._forget(record.first)
        folder.now[name] = node

    def _file(self, record: Record) -> File:
        node = self._node(record.first) if record.descriptor < 0 else self.opened[record.descriptor]
        if not isinstance(node, File):
            raise TypeError(f"{record}: written to a directory")
        return node

    def _place(self, path: str) -> tuple[Folder, str]:
        """The directory of *path* and its name in there; no name for the top."""
        folder, parts = self.root, Path(path).relative_to(self.top).parts
        for part in parts[:-1]:
            found = folder.now[part]
            if not isinstance(found, Folder):
                raise NotADirectoryError(path)
            folder = found
        return folder, parts[-1] if parts else ""

    def _node(self, path: str) -> Node:
        folder, name = self._place(path)
        return folder.now[name] if name else folder

    def _name(self, path: str, node: Node) -> None:
        folder, name = self._place(path)
        folder.now[name] = node

    def _forget(self, path: str) -> None:
        folder, name = self._place(path)
        del folder.now[name]

    def after(self, survivors: Survivors) -> Tree:
        """What is found after the power cut."""
        tree: Tree = {}
        _collect(self.root, "", survivors, tree)
        return tree


def _collect(folder: Folder, prefix: str, survivors: Survivors, tree: Tree) -> None:
    for name, node in folder.after(survivors).items():
        path = f"{prefix}{name}"
        if isinstance(node, Folder):
            tree[path] = None
            _collect(node, f"{path}/", survivors, tree)
        else:
            tree[path] = node.after(survivors)


def look(top: Path) -> Tree:
    """Everything below *top*."""
    return {
        str(path.relative_to(top)): None if path.is_dir() else path.read_bytes()
        for path in sorted(top.rglob("*"))
    }


def put(tree: Tree, top: Path) -> None:
    """Write *tree* below *top*, which is made."""
    top.mkdir(parents=True)
    for path, content in sorted(tree.items()):
        if content is None:
            (top / path).mkdir()
        else:
            (top / path).write_bytes(content)
