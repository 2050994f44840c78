"""Who may command through the admin endpoint: the holder of the token that the run has written down.

The token is new at each start and lies in a file that the owner alone can read.  It stands in a header that
no page of another origin can send without being asked for it first, and this endpoint grants nothing of that.
"""

from __future__ import annotations

import hmac
import os
import pathlib
import secrets
from typing import Any, Final, Protocol

from daemon.errors import writing

TOKEN_FILE: Final = "admin.token"  # noqa: S105  a name
_BYTES: Final = 32
_SCHEME: Final = "Bearer "


class Rungs(Protocol):
    """What an operator can hold and let go."""

    def pin(self, density: float, samples: int, who: str) -> None:
        """Hold a setting; raises ValueError with one line when that cannot be."""
        ...

    def unpin(self, who: str) -> None:
        """Let it go."""
        ...

    def status(self) -> dict[str, Any]:
        """Return what is so now."""
        ...


class Operator:
    """The commands of one run, and the token that they want; `close` removes the token's file."""

    def __init__(self, rungs: Rungs, folder: pathlib.Path) -> None:
        self.rungs, self.path = rungs, folder / TOKEN_FILE
        self._token = secrets.token_urlsafe(_BYTES)
        with writing(folder):
            self.path.unlink(missing_ok=True)
            handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "w") as file:
                file.write(self._token + "\n")

    def allows(self, header: str) -> bool:
        """Say whether an Authorization header holds the token."""
        given = header.removeprefix(_SCHEME) if header.startswith(_SCHEME) else ""
        return hmac.compare_digest(given.encode(), self._token.encode())

    def close(self) -> None:
        """Remove the token's file."""
        self.path.unlink(missing_ok=True)
