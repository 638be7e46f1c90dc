"""The files of one local store, all under one state directory.

``store/`` the engine's data; ``store.password`` its password, made once; ``spool/`` large request bodies on their way;
beside them what every engine has (``local.process_dir``): ``store.json``, ``.port``, ``.lock`` and ``.log``.
"""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Final

from local.process_dir import ProcessDir, read_text, write_privately
from schemas.errors import LocalError

USER: Final = "millrace"
DATABASE: Final = "millrace"


class StateDir(ProcessDir):
    """The paths and small files of one state directory.

    Args:
        root: The state directory; made absolute.
    """

    def __init__(self, root: Path) -> None:
        super().__init__(root, "store", "store")
        self.data = self.root / "store"
        self.spool = self.root / "spool"
        self._password = self.root / "store.password"

    def create(self) -> None:
        """Make the directory and its spool; ``LocalError`` where that cannot be."""
        super().create()
        try:
            self.spool.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise LocalError(
                f"the spool directory {self.spool} cannot be used: {error.strerror or error}; remove what is there"
            ) from error

    def password(self) -> str:
        """The password, or an empty text when none was made yet."""
        return read_text(self._password).strip()

    def ensure_password(self) -> str:
        """The password; made now when there is none. Only its owner may read the file."""
        known = self.password()
        if known:
            self._password.chmod(0o600)
            return known
        made = secrets.token_urlsafe(24)
        write_privately(self._password, made + "\n")
        return made
