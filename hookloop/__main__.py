"""``python -m hookloop``: the same as the ``hookloop`` command."""

from hookloop.cli import main

if __name__ == "__main__":
    main()
