"""send and recv of libc for kernels, and what their errors mean."""

from __future__ import annotations

import errno
import socket
from typing import Final

from ringbuf.jit import external, inlined
from ringbuf.memory import load_i32

SEND_FLAGS: Final = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
RECV_FLAGS: Final = int(socket.MSG_DONTWAIT)
_EAGAIN, _EWOULDBLOCK, _EINTR, _ENOBUFS, _ENOMEM = (
    errno.EAGAIN, errno.EWOULDBLOCK, errno.EINTR, errno.ENOBUFS, errno.ENOMEM,
)  # fmt: skip

socket_send = external("send", "intp", "intc", "intp", "intp", "intc")
socket_recv = external("recv", "intp", "intc", "intp", "intp", "intc")
_errno_location = external("__errno_location", "intp")


@inlined
def errno_now() -> int:
    """Return errno of the libc call just made in this thread."""
    return load_i32(_errno_location())


@inlined
def is_busy(reason: int) -> bool:
    """Say whether an errno means "try again later"."""
    busy = reason == _EAGAIN or reason == _EWOULDBLOCK or reason == _EINTR
    return busy or reason == _ENOBUFS or reason == _ENOMEM
