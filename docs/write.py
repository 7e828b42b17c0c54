"""Write the parts of the documentation that come from the code; ``--check`` says whether they are true."""

from __future__ import annotations

import sys
from pathlib import Path

from hookloop import describe

HERE = Path(__file__).parent
PAGES = {"hooks.md": describe.hooks}


def main(arguments: list[str]) -> int:
    """Write every page, or compare it."""
    stale = []
    for name, text in PAGES.items():
        path = HERE / name
        if "--check" in arguments:
            if not path.exists() or path.read_text(encoding="utf-8") != text():
                stale.append(name)
        else:
            path.write_text(text(), encoding="utf-8")
    if stale:
        sys.stderr.write(f"docs/{', docs/'.join(stale)}: not what the code says; run: make docs\n")
    return bool(stale)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
