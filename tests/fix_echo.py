"""An acceptor on a loopback socket: our session engine behind an application that echoes."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable

from nimbus.fix.message import Message, fields
from nimbus.fix.session import Session
from nimbus.fix.settings import Reset, Role, SessionSettings
from nimbus.fix.store import Store

ECHOED = ("D", "d", "C")
TICK_S = 0.02


def echo(session: Session, message: Message, seen: set[str], now_ns: int) -> None:
    """Send D, d and C back with their tags rising; drop a PossResend seen before; refuse the rest."""
    if message.msg_type not in (*ECHOED, "3"):
        pairs = [(45, message.seq), (58, "Unsupported Message Type"), (372, message.msg_type), (380, 3)]
        session.send("j", fields(pairs), now_ns)
        return
    cl_ord_id, again = message.text(11), message.get(97) == b"Y"
    if message.msg_type == "3" or (again and cl_ord_id in seen):
        return
    seen.add(cl_ord_id)
    body = sorted(pair for pair in Message.parse(b"8=X\x01" + message.body + b"10=0\x01").fields[1:-1])
    session.send(message.msg_type, (b"97=Y\x01" if again else b"") + fields(body), now_ns)


class EchoAcceptor:
    """Serves connections in one thread each until it is closed."""

    def __init__(self, sender: str = "ISLD", target: str = "TW44", **settings) -> None:
        base = {"reset": Reset.ALWAYS} | settings
        self.settings = SessionSettings(Role.ACCEPTOR, sender, **base)
        self.stores = {target: Store()}
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.sessions: list[Session] = []
        self.handle: Callable[[Session, Message, set[str], int], None] = echo
        self.is_refusing = False  # connections are closed at once
        self.is_mute = False  # nothing is written
        self.swallow = 0  # this many more application messages do not reach the wire
        self._connections: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._stop = threading.Event()
        self._start(self._accept)

    def _start(self, run, *arguments) -> None:
        thread = threading.Thread(target=run, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        self._listener.settimeout(TICK_S)
        while not self._stop.is_set():
            try:
                connection, _ = self._listener.accept()
            except TimeoutError:
                continue
            if self.is_refusing:
                connection.close()
                continue
            self._connections.append(connection)
            self._start(self._serve, connection)

    def _serve(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.settimeout(TICK_S)
        session, seen = Session(self.settings, self.stores), set[str]()
        self.sessions.append(session)
        session.connected(time.time_ns())
        with connection, contextlib.suppress(ConnectionError):
            while not (session.is_closed or self._stop.is_set()):
                try:
                    data = connection.recv(65_536)
                    if not data:
                        break
                    session.received(data, time.time_ns())
                except TimeoutError:
                    session.tick(time.time_ns())
                self._answer(connection, session, seen)
        session.disconnected(time.time_ns())

    def _answer(self, connection: socket.socket, session: Session, seen: set[str]) -> None:
        self._write(connection, session)
        for message in session.messages():
            self.handle(session, message, seen, time.time_ns())
            if self.swallow and message.msg_type == "D":
                session.take_output()
                self.swallow -= 1
        self._write(connection, session)

    def _write(self, connection: socket.socket, session: Session) -> None:
        data = session.take_output()
        if not self.is_mute:
            connection.sendall(data)

    def drop(self) -> None:
        """Cut every connection without a word."""
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._connections.clear()

    def close(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(5)
        self._listener.close()
