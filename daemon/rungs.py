"""Which rung serves: what the configuration asks of the model's ladder, and the ring that brings changes.

A change comes from the configuration (a pinned rung), from a recorded journal, or from NANopt
(rung_control.py); the strategy loop applies it before a decision and journals it (rung_change.py).
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np

from bicep.nanopt import Change, Reason
from bicep.plan import ANALYTIC, MC_32, MODE_SAMPLES, RUNGS_MAX
from daemon.config import BicepConfig, Config, rung_density
from daemon.errors import CommandError
from daemon.model import Model
from nimbus.journal.segments import JournalError
from nimbus.journal.show import entries
from nimbus.journal.types import RUN_START, RUNG, RecordType
from ringbuf.segment import Segment
from ringbuf.spsc import RingView, create_ring, push_many
from strategy.shadows import Sampler

CAPACITY: Final = 64
RING: Final = "bicep.rungs"
DENSE: Final = 0  # word of the dense rung with all samples
_SAME: Final = 1e-9


def mode_of(samples: int) -> int:
    """Return the mode that draws so many samples; raises ValueError for another number."""
    return MODE_SAMPLES.index(samples)


def word_of(rung: int, samples: int) -> int:
    """Return rung and samples as one word."""
    return rung + RUNGS_MAX * mode_of(samples)


def ladder_of(model: Model) -> dict[str, Any] | None:
    """Return what the model's manifest says of its ladder, None when it says nothing."""
    return model.plan.manifest.get("ladder") if model.plan else None


def settings_words(config: BicepConfig, model: Model) -> list[int]:
    """Return the words that NANopt may choose from, as the configuration and the calibration allow."""
    ladder, wanted = ladder_of(model), config.uncertainty
    if ladder is None:
        msg = (
            f'bicep.rung "auto": model {model.id} has no ladder: run `contrafusion train`, or pin rung "1.0"'
        )
        raise CommandError(msg)
    calibrated = ladder["analytic"]["is_calibrated"]
    words = [
        rung + RUNGS_MAX * mode
        for rung in range(len(ladder["rungs"]))
        for mode in range(len(MODE_SAMPLES))
        if (mode != ANALYTIC and wanted != "analytic")
        or (mode == ANALYTIC and wanted != "mc" and calibrated[rung])
    ]
    if not words:
        msg = f'bicep.uncertainty "analytic": no rung of model {model.id} is calibrated for it'
        raise CommandError(msg)
    return words


def pinned_word(config: BicepConfig, model: Model, density: float) -> int:
    """Return the word of a pinned rung; raises CommandError when the model does not have it."""
    densities = model.plan.densities if model.plan else [1.0]
    at = [n for n, known in enumerate(densities) if abs(known - density) < _SAME]
    if not at:
        rungs = ", ".join(f"{known:g}" for known in densities)
        msg = f"bicep.rung {config.rung!r}: the rungs of model {model.id} are {rungs}"
        raise CommandError(msg)
    if config.uncertainty == "mc":
        return at[0]
    ladder = ladder_of(model)
    if config.uncertainty == "any":
        msg = f'bicep.uncertainty "any" needs bicep.rung "auto", not {config.rung!r}'
        raise CommandError(msg)
    if ladder is None or not ladder["analytic"]["is_calibrated"][at[0]]:
        msg = f'bicep.uncertainty "analytic": rung {density:g} of model {model.id} is not calibrated for it'
        raise CommandError(msg)
    return at[0] + RUNGS_MAX * ANALYTIC


def blank_row(model: Model, word: int, reason: Reason) -> Any:
    """Return a RUNG that takes the plan from the dense rung to a word, as soon as it is seen."""
    row = np.zeros(1, RUNG.dtype)[0]
    assert model.plan is not None
    mode, rung = divmod(word, RUNGS_MAX)
    row["density"], row["old_density"], row["word"] = model.plan.densities[rung], 1.0, word
    row["samples"], row["old_samples"] = MODE_SAMPLES[mode], MODE_SAMPLES[MC_32]
    row["gain"], row["reason"] = 1.0, reason
    return row


def recorded_rows(journal: pathlib.Path, config: Config, model: Model) -> Iterator[Any]:
    """Yield the RUNG records of a journal; raises CommandError when it is none of this model and seed."""
    try:
        found = list(entries(journal, [RecordType.RUN_START, RecordType.RUNG]))
    except JournalError as error:
        msg = f"--rungs {error}"
        raise CommandError(msg) from None
    starts = [np.frombuffer(e.payload[: RUN_START.size], RUN_START.dtype)[0] for e in found
              if e.kind == RecordType.RUN_START]  # fmt: skip
    if not starts:
        msg = f"--rungs {journal}: the journal has no start of a run"
        raise CommandError(msg)
    if starts[0]["model_digest"].tobytes() != model.digest:
        msg = f"--rungs {journal}: another model answered there than {model.id}"
        raise CommandError(msg)
    if int(starts[0]["seed"]) != config.seed:
        msg = f"--rungs {journal}: seed {starts[0]['seed']} there, {config.seed} in the configuration"
        raise CommandError(msg)
    rungs = model.plan.rungs if model.plan else 0
    for entry in found:
        if entry.kind != RecordType.RUNG:
            continue
        row = np.frombuffer(entry.payload[: RUNG.size], RUNG.dtype)[0].copy()
        mode, rung = divmod(int(row["word"]), RUNGS_MAX)
        if rung >= rungs or mode > ANALYTIC or row["decision"] < 1:
            msg = f"--rungs {journal}: record {entry.record} is no rung of model {model.id}"
            raise CommandError(msg)
        yield row


class Rungs:
    """Own the ring of changes; `ring` goes to the pipeline, `sampler` to the strategy agent.

    recorded: journal that a replay takes the changes from.  live: NANopt may run beside this system.
    Raises CommandError (one line) for what the model cannot do.
    """

    def __init__(
        self, config: Config, model: Model, segment: Segment, *, recorded: pathlib.Path | None, live: bool
    ) -> None:
        density, self.warnings = rung_density(config.bicep.rung), list[str]()
        self._model, self.is_adaptive = model, density is None and live
        rows: Sequence[Any] = ()
        if density is None:
            self.words = settings_words(config.bicep, model)
        else:
            self.words = [pinned_word(config.bicep, model, density)]
            rows = [blank_row(model, w, Reason.START) for w in self.words if w != DENSE]
        if recorded is not None:
            rows = list(recorded_rows(recorded, config, model))
        elif density is None and not live:
            self.warnings.append(
                'bicep.rung is "auto" and no journal was given (--rungs): the dense rung served throughout'
            )
        capacity = 1 << max(len(rows), CAPACITY - 1).bit_length()
        self.ring = create_ring(segment, RING, capacity, RUNG)
        self.view = RingView(segment, RING)
        self.sampler = (
            Sampler(segment, config.bicep.shadow_every)
            if self.is_adaptive and config.bicep.shadow_every > 0
            else None
        )
        for row in rows:
            self.push(row)

    def push(self, row: Any) -> bool:
        """Hand a RUNG to the strategy loop; False when the ring is full."""
        held = np.array([row], RUNG.dtype)
        return bool(push_many(self.ring, held.ctypes.data, 1))

    def change(self, made: Change) -> bool:
        """Hand a change of NANopt to the strategy loop; False when the ring is full."""
        row = blank_row(self._model, word_of(made.rung, made.samples), made.reason)
        assert self._model.plan is not None
        row["old_density"] = self._model.plan.densities[made.old_rung]
        row["gain"], row["error"], row["slo_us"] = made.gain, made.error, made.slo_us
        return self.push(row)

    @property
    def is_waiting(self) -> bool:
        """Whether a change has not been taken yet."""
        return self.view.used > 0

    @property
    def taken(self) -> int:
        """Changes that the strategy loop has taken."""
        return self.view.popped


def served(rows: Sequence[dict[str, Any]], decisions: int) -> list[dict[str, Any]]:
    """Return density, samples and decisions of each setting that served, in the order of their first use.

    rows: RUNG records as `show` gives them; decisions: the number of the last one.
    """
    counts: dict[tuple[float, int], int] = {}
    at, now = 1, (1.0, MODE_SAMPLES[MC_32])
    for row in rows:
        counts[now] = counts.get(now, 0) + row["decision"] - at
        at, now = row["decision"], (row["density"], row["samples"])
    counts[now] = counts.get(now, 0) + decisions + 1 - at
    return [{"density": d, "samples": s, "decisions": n} for (d, s), n in counts.items() if n > 0]


def as_text(settings: Sequence[dict[str, Any]]) -> str:
    """Return the settings that served as one phrase."""
    return ", ".join(
        f"{s['density']:g} x {s['samples'] or 'analytic'}: {s['decisions']:,} decisions" for s in settings
    )
