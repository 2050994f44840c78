"""The registry of operations: one registration gives an operation its bodies, shapes, tolerance and work.

    @op("name", schema="(Tensor x) -> Tensor", fake=shapes, work=multiply_adds, source="linear")
    def name(x): ...                 the definition in plain torch: any device, any dtype
    @compiled("name")                a faster body for data on the CPU; NotImplemented = not for this call
    @on_device("name")               a body of CUDA kernels; its first argument is the Launcher

Which body runs is decided at each call: where the data lies, whether a device is attached and alive, and
whether the body takes the call.  A device that is lost in the middle of a call costs that call some time:
it is made again on the CPU, and so are all that follow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, cast

import torch
from torch import Tensor

Body = Callable[..., Any]
Tolerance = Mapping[torch.dtype, tuple[float, float]]  # dtype -> (absolute, relative)

NAMESPACE: Final = "bicep"
LIBRARY: Final = torch.library.Library(NAMESPACE, "DEF")  # type: ignore[no-untyped-call]
TOLERANCE: Final[Tolerance] = {
    torch.float64: (1e-10, 1e-10),
    torch.float32: (1e-5, 1e-4),
    torch.float16: (1e-2, 1e-2),
    torch.bfloat16: (5e-2, 5e-2),
}


class DeviceLostError(Exception):
    """The device does not answer or refused a launch; the message is one line."""


class Launcher(Protocol):
    """A device that runs the kernels of bicep/cuda."""

    def launch(
        self,
        source: str,
        kernel: str,
        grid: tuple[int, int],
        block: int,
        arguments: Sequence[Any],
        shared: int = 0,
    ) -> None:
        """Launch a kernel of bicep/cuda/SOURCE.cu on the stream that torch uses.

        arguments: tensors (their memory), None (a null pointer) and numpy scalars, in the kernel's order.
        Raises DeviceLostError.
        """

    def holds(self, tensor: Tensor) -> bool:
        """Say whether the tensor's memory is the device's."""

    def wants(self, name: str, work: int) -> bool:
        """Say whether a call on data that lies on the CPU is worth the two copies."""

    def fetch(self, tensor: Tensor) -> Tensor:
        """Return the tensor on the device.  Raises DeviceLostError."""

    def give(self, tensor: Tensor) -> Tensor:
        """Return the tensor on the CPU.  Raises DeviceLostError."""


@dataclass(slots=True)
class Op:
    """One operation."""

    name: str
    schema: str
    body: Body
    fake: Body
    work: Callable[..., int]
    source: str  # bicep/cuda/SOURCE.cu, "" = it has no kernel
    tolerance: Tolerance
    compiled: Body | None = None
    device: Body | None = None
    calls: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("torch", "compiled", "device"), 0))


@dataclass(slots=True)
class Registry:
    """All operations, and the device that is attached."""

    ops: dict[str, Op] = field(default_factory=dict)
    launcher: Launcher | None = None
    lost: str = ""  # why the device was given up; empty = it was not
    losses: int = 0

    def attach(self, launcher: Launcher | None) -> None:
        """Use this device from now on; None = none."""
        self.launcher, self.lost = launcher, ""

    def run(self, op: Op, arguments: Sequence[Any]) -> Any:
        """Run an operation where its data lies."""
        launcher = self.launcher
        if launcher is not None and op.device is not None:
            try:
                result = self._on_device(launcher, op, arguments)
            except DeviceLostError as error:
                self.launcher, self.lost = None, str(error)
                self.losses += 1
                arguments = _brought_home(launcher, arguments)
            else:
                if result is not NotImplemented:
                    op.calls["device"] += 1
                    return result
        if op.compiled is not None and _first(arguments).device.type == "cpu":
            result = op.compiled(*arguments)
            if result is not NotImplemented:
                op.calls["compiled"] += 1
                return result
        op.calls["torch"] += 1
        return op.body(*arguments)

    def _on_device(self, launcher: Launcher, op: Op, arguments: Sequence[Any]) -> Any:
        body = op.device
        assert body is not None
        if launcher.holds(_first(arguments)):
            return body(launcher, *arguments)
        if not launcher.wants(op.name, op.work(*arguments)):
            return NotImplemented
        result = body(launcher, *_mapped(launcher.fetch, arguments))
        if isinstance(result, tuple):
            return tuple(launcher.give(part) for part in result)
        return result if result is NotImplemented else launcher.give(result)


REGISTRY: Final = Registry()


def _first(arguments: Sequence[Any]) -> Tensor:
    found: Tensor = next(value for value in arguments if isinstance(value, Tensor))
    return found


def _mapped(change: Callable[[Tensor], Tensor], arguments: Sequence[Any]) -> list[Any]:
    return [change(value) if isinstance(value, Tensor) else value for value in arguments]


def _brought_home(launcher: Launcher, arguments: Sequence[Any]) -> Sequence[Any]:
    """Return the arguments on the CPU; what the lost device alone held is beyond help."""
    try:
        return _mapped(lambda t: launcher.give(t) if launcher.holds(t) else t, arguments)
    except DeviceLostError as error:
        msg = f"the device is lost, and with it the inputs of the call: {error}"
        raise DeviceLostError(msg) from error


def op(
    name: str,
    *,
    schema: str,
    fake: Body,
    work: Callable[..., int],
    source: str = "",
    tolerance: Tolerance = TOLERANCE,
) -> Callable[[Body], Body]:
    """Register the definition of `bicep::name`; the decorated function stays what it is.

    fake: shapes and dtypes of the result, without data; work: multiply-adds of a call.
    """

    def register(body: Body) -> Body:
        made = Op(name, schema, body, fake, work, source, tolerance)
        REGISTRY.ops[name] = made
        library = cast("Any", LIBRARY)
        library.define(name + schema)
        library.impl(name, lambda *args: REGISTRY.run(made, args), "CompositeExplicitAutograd")
        torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=LIBRARY)
        return body

    return register


def compiled(name: str) -> Callable[[Body], Body]:
    """Register the body that runs on the CPU when it takes the call."""

    def register(body: Body) -> Body:
        REGISTRY.ops[name].compiled = body
        return body

    return register


def on_device(name: str) -> Callable[[Body], Body]:
    """Register the body of CUDA kernels."""

    def register(body: Body) -> Body:
        REGISTRY.ops[name].device = body
        return body

    return register
