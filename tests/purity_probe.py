"""Compile every kernel of the pipeline afresh and print, as JSON, what each one calls that it should not.

Run in a process of its own, since only the process that compiled a kernel has its LLVM IR.
"""

from __future__ import annotations

import importlib
import json
import pathlib
import pkgutil
import sys
from typing import Any

import numpy as np

PACKAGES = ("ringbuf", "nimbus", "bicep", "strategy")
MODULES = ("daemon.pipeline", "daemon.loops", "daemon.rung_change")


def dispatchers() -> dict[str, Any]:
    """Return name -> kernel for all that stand in the modules which are loaded, once each."""
    found: dict[str, Any] = {}
    for name, module in sorted(sys.modules.items()):
        if module is None or not (name.split(".")[0] in PACKAGES or name in MODULES):
            continue
        for thing in vars(module).values():
            if hasattr(thing, "py_func") and hasattr(thing, "inspect_llvm"):
                home = thing.py_func.__module__
                found.setdefault(f"{home}.{thing.py_func.__qualname__}", thing)
    return found


def load_all() -> None:
    """Import every module of the hot packages, so that no kernel is overlooked."""
    for package in PACKAGES:
        path = importlib.import_module(package).__path__
        for module in pkgutil.walk_packages(path, f"{package}."):
            importlib.import_module(module.name)


def main() -> None:
    """Warm the pipeline and the walk of `book`, look at all that was compiled, plant a fault, print."""
    from daemon.config import Config
    from daemon.warm import warm_kernels
    from ringbuf.jit import heap_calls, kernel

    warm_kernels(Config())
    walk_books()
    train_layers()
    warm_wire()
    warm_loops()
    warm_exchange()
    exchange_messages()
    offload_jobs()
    load_all()
    compiled = {name: fn for name, fn in dispatchers().items() if fn.signatures}
    result = {
        "impure": {name: sorted(calls) for name, fn in compiled.items() if (calls := heap_calls(fn))},
        "compiled": sorted(compiled),
        "never": sorted(set(dispatchers()) - set(compiled)),
        "planted": planted(heap_calls, kernel),
    }
    json.dump(result, sys.stdout)


def walk_books() -> None:
    """Compile what `contrafusion book` runs."""
    import tempfile

    from daemon.main import main as contrafusion
    from daemon.warm import _ONE_MESSAGE

    with tempfile.TemporaryDirectory() as folder:
        capture = pathlib.Path(folder) / "one.itch"
        capture.write_bytes(_ONE_MESSAGE)
        words = ["book", str(capture), "--bbo", f"{folder}/b.csv", "--depth", f"{folder}/d.csv"]
        assert contrafusion(words) == 0


def train_layers() -> None:
    """Compile what a BICEPLayer runs, forward and backward, with dropout and a table of states."""
    import torch

    from bicep.cpu import bodies

    x, weight, state = torch.ones(3, 4), torch.ones(5, 4), torch.zeros(3, dtype=torch.int64)
    mask, draw = torch.ones(5, 4, dtype=torch.bool), torch.tensor([1, 2, 3])
    y, saved = bodies.fused_linear(x, weight, mask, torch.ones(1, 5), state, draw, 1, 57_344, saves=True)
    bodies.fused_linear_bwd(y, x, weight, mask, saved, torch.ones(1, 5), state, draw, 1, 57_344)
    bodies.masked_linear(torch.ones(64, 4), weight, mask)  # counts what is kept
    from bicep import series

    series.indicators(np.ones((40, 3)))
    series.rolling_correlation(np.ones((5, 3)), 2)
    series.price_paths([1.0], [0.0], [0.1], steps=5, paths=17)


def warm_wire() -> None:
    """Compile what a live feed runs besides."""
    from nimbus.feed.dpdk import warm_bridge
    from nimbus.feed.recorder import RECORDER, pack_block
    from nimbus.feed.source import warm_sources
    from nimbus.feed.udp_send import warm_sender

    warm_sources()
    warm_bridge()
    warm_sender()
    blank, block = np.zeros(1, RECORDER.dtype), np.zeros(8, np.int64)
    blank["ring"] = block.ctypes.data  # one block, which is not ready
    assert pack_block(blank.ctypes.data) == 0


def warm_loops() -> None:
    """Compile the loops of the live placements."""
    from daemon.config import Config
    from daemon.settings import adjusted
    from daemon.system import System
    from daemon.threads import LOOPS, create_loops
    from ringbuf.agent import request_stop

    wire = {"feed.source": "udp", "feed.address": "127.0.0.1", "feed.line_a": "127.0.0.1:26477"}
    config = adjusted(Config(), wire | {"venue.kind": "fix", "book.live_orders_max": 65_536})
    system = System(config, None)
    request_stop(system.control_addr)
    for placement in LOOPS:
        create_loops(system.segment, system.pipeline, config.run, placement, lambda *_: None)
    system.close()


def warm_exchange() -> None:
    """Compile what `contrafusion venue` runs."""
    import dataclasses
    import tempfile

    from daemon.exchange import warm_up
    from daemon.exchange_config import ExchangeConfig
    from daemon.exchange_system import ExchangeSystem

    with tempfile.TemporaryDirectory() as folder:
        base = ExchangeConfig()
        system = ExchangeSystem(
            dataclasses.replace(
                base,
                flow=dataclasses.replace(base.flow, source="none"),
                run=dataclasses.replace(base.run, folder=folder),
                rerequest=dataclasses.replace(base.rerequest, port=0),
            )
        )
        warm_up(system)
        system.close()


def exchange_messages() -> None:
    """Compile what the FIX connection of the orders loop runs, and the control loop's side of it."""
    from fix_link_rig import LinkRig

    rig = LinkRig()
    rig.establish()
    rig.close()


def offload_jobs() -> None:
    """Compile what answers jobs by rings."""
    from bicep.cuda.rings import RingRig
    from bicep.offload import Offload

    rig = RingRig(hidden=(64, 8), capacity=4)
    rig.push(2)
    assert len(rig.asked(0, 2)) == 2
    assert Offload(rig.plan, rig.jobs, rig.answers).turn() == 2
    assert len(rig.popped(2)) == 2


def planted(heap_calls: Any, kernel: Any) -> dict[str, list[str]]:
    """Return what the check says of two kernels that do what a kernel must not."""

    def allocates(n: int) -> int:
        return np.zeros(n, np.int64)[0]

    def raises(n: int) -> int:
        if n < 0:
            raise ValueError
        return n

    found = {}
    for fn in (allocates, raises):
        made = kernel(fn)
        made(1)
        found[fn.__name__] = sorted(heap_calls(made))
    return found


if __name__ == "__main__":
    main()
