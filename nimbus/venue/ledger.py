"""The exchange's own ledger: what every account bought and sold, to reconcile with.

Each trade of an order of ours is one line of a JSON Lines file, written through to the kernel before its
report goes out, so the ledger survives the process; a torn last line, where one died, is cut off.
Prices are in 1/10,000 of the currency, `cash` is minus the sum of signed quantity x price.
"""

from __future__ import annotations

import json
import pathlib
from dataclasses import asdict, dataclass
from typing import Any, Final

_SIGNS: Final = {"B": 1, "S": -1}


class LedgerError(Exception):
    """The ledger cannot be read or written; the text is one line."""


@dataclass(slots=True)
class Position:
    """What one account holds of one symbol."""

    qty: int = 0
    bought_qty: int = 0
    sold_qty: int = 0
    cash_1e4: int = 0
    fills: int = 0

    def book(self, side: str, qty: int, px: int) -> None:
        """Take one trade."""
        signed = _SIGNS[side] * qty
        self.qty += signed
        self.cash_1e4 -= signed * px
        self.fills += 1
        if signed > 0:
            self.bought_qty += qty
        else:
            self.sold_qty += qty


class Ledger:
    """Positions by account and symbol; path: where the trades are kept, None = nowhere.

    Raises LedgerError.
    """

    def __init__(self, path: pathlib.Path | None = None) -> None:
        self.accounts: dict[str, dict[str, Position]] = {}
        self.fills = 0
        self._path = path
        if path is None:
            return
        try:
            self._file = path.open("a+b", buffering=0)
        except OSError as error:
            msg = f"{path}: {error.strerror or error}"
            raise LedgerError(msg) from None
        try:
            self._load()
        except BaseException:
            self._file.close()
            raise

    def _load(self) -> None:
        self._file.seek(0)
        whole = self._file.read()
        at = 0
        for line in whole.splitlines(keepends=True):
            if not line.endswith(b"\n"):
                break
            try:
                row = json.loads(line)
                trade = (row["account"], row["symbol"], row["side"], int(row["qty"]), int(row["px_1e4"]))
                self._book(*trade)
            except (ValueError, KeyError, TypeError) as error:
                msg = f"{self._path}: not a trade at byte {at}: {error!r}"
                raise LedgerError(msg) from None
            at += len(line)
        if at < len(whole):
            self._file.truncate(at)

    def _book(self, account: str, symbol: str, side: str, qty: int, px: int) -> None:
        self.accounts.setdefault(account, {}).setdefault(symbol, Position()).book(side, qty, px)
        self.fills += 1

    def trade(self, row: dict[str, Any]) -> None:
        """Book one trade: account, symbol, side (B or S), qty, px_1e4, and whatever else is worth keeping."""
        self._book(row["account"], row["symbol"], row["side"], row["qty"], row["px_1e4"])
        if self._path is None:
            return
        try:
            self._file.write(json.dumps(row, separators=(",", ":")).encode() + b"\n")
        except OSError as error:
            msg = f"{self._path}: {error.strerror or error}"
            raise LedgerError(msg) from None

    def positions(self) -> dict[str, dict[str, dict[str, int]]]:
        """Return {account: {symbol: {qty, bought_qty, sold_qty, cash_1e4, fills}}}."""
        return {
            account: {symbol: asdict(position) for symbol, position in sorted(symbols.items())}
            for account, symbols in sorted(self.accounts.items())
        }

    def close(self) -> None:
        """Close the file."""
        if self._path is not None:
            self._file.close()
