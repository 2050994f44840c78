"""A FIX acceptor of another engine, as a process of its own (it needs the optional package `quickfix`).

It accepts orders and cancels, and answers our numbers with its own rules.
usage: quickfix_peer.py FOLDER PORT SENDER TARGET [RESET]
"""

from __future__ import annotations

import itertools
import pathlib
import sys
import time

import quickfix as fix

CONFIG = """[DEFAULT]
ConnectionType=acceptor
SocketAcceptPort={port}
SocketReuseAddress=Y
SocketNodelay=Y
StartTime=00:00:00
EndTime=00:00:00
UseDataDictionary=N
ValidateUserDefinedFields=N
HeartBtInt=30
FileStorePath={folder}/store
[SESSION]
BeginString=FIX.4.4
SenderCompID={sender}
TargetCompID={target}
"""


class Exchange(fix.Application):
    """Accepts what comes."""

    def __init__(self) -> None:
        super().__init__()
        self._numbers = itertools.count(1)

    def onCreate(self, _session) -> None: ...  # noqa: N802
    def onLogon(self, _session) -> None: ...  # noqa: N802
    def onLogout(self, _session) -> None: ...  # noqa: N802
    def toAdmin(self, _message, _session) -> None: ...  # noqa: N802
    def fromAdmin(self, _message, _session) -> None: ...  # noqa: N802
    def toApp(self, _message, _session) -> None: ...  # noqa: N802

    def fromApp(self, message, session) -> None:  # noqa: N802
        """Accept an order, cancel what is to be cancelled."""
        kind = message.getHeader().getField(35)
        status = {"D": "0", "F": "4"}.get(kind)
        if status is None:
            return
        answer = fix.Message()
        answer.getHeader().setField(fix.MsgType("8"))
        qty = int(message.getField(38))
        values = {
            37: "Q1",
            17: f"Q{time.time_ns()}-{next(self._numbers)}",
            150: status,
            39: status,
            14: 0,
            6: 0,
        }
        values |= {151: qty if status == "0" else 0}
        for tag in (11, 41, 38, 54, 55):
            if message.isSetField(tag):
                values[tag] = message.getField(tag)
        for tag, value in values.items():
            answer.setField(tag, str(value))
        fix.Session.sendToTarget(answer, session)


def main() -> None:
    """Serve until standard input is closed."""
    folder, port, sender, target = sys.argv[1:5]
    path = pathlib.Path(folder) / "acceptor.cfg"
    path.write_text(CONFIG.format(folder=folder, port=port, sender=sender, target=target))
    exchange, settings = Exchange(), fix.SessionSettings(str(path))
    acceptor = fix.SocketAcceptor(exchange, fix.FileStoreFactory(settings), settings)
    acceptor.start()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.read()
    acceptor.stop(True)  # noqa: FBT003


if __name__ == "__main__":
    main()
