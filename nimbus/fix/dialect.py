"""The FIX versions the session engine speaks, as a table."""

from __future__ import annotations

from typing import Final, NamedTuple


class Dialect(NamedTuple):
    """What differs between versions below the application.

    begin_string: BeginString(8).  appl_ver_id: DefaultApplVerID(1137) that each Logon carries, "" = none.
    """

    begin_string: str
    appl_ver_id: str = ""


FIX42: Final = Dialect("FIX.4.2")
FIX44: Final = Dialect("FIX.4.4")
FIX50SP2: Final = Dialect("FIXT.1.1", "9")

DIALECTS: Final = {dialect.begin_string: dialect for dialect in (FIX42, FIX44, FIX50SP2)}
