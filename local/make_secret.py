"""Makes a random secret in a file, once: ``python -m local.make_secret FILE``.

For ``compose.yaml``: the password of an installation is its own, and stands in no file that is shared.
"""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path

from schemas.errors import LocalError


def make_secret(path: Path) -> bool:
    """Write a new secret, unless the file has one.

    The file is readable by all: keep it in a directory, or on a volume, that only those see who need it.

    Returns:
        Whether it was made.

    Raises:
        LocalError: the file cannot be written.
    """
    try:
        if path.exists() and path.stat().st_size:
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        partial.write_text(secrets.token_urlsafe(32) + "\n", encoding="ascii")
        partial.chmod(0o444)
        os.replace(partial, path)
    except OSError as error:
        raise LocalError(f"secret {path}: expected a file that can be written: {error.strerror}") from error
    return True


def main() -> int:
    """Entry point. Says whether the secret was made, never what it is."""
    if len(sys.argv) != 2:
        sys.stderr.write("usage: python -m local.make_secret FILE\n")
        return 2
    try:
        made = make_secret(Path(sys.argv[1]))
    except LocalError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    sys.stdout.write(f"secret {sys.argv[1]}: {'made' if made else 'there already'}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
