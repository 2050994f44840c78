"""Which model answers: the trained plan, the fixed rule, or none; and what the report says of it."""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
from typing import Any, Final

from bicep.plan import Plan, PlanError
from daemon.config import Config
from daemon.errors import CommandError
from ringbuf.segment import Segment
from strategy.features import Normalisation
from strategy.rule import LinearRule, rule_image

PINNED: Final = "pinned"  # file in the models folder that names the model in use
_DIGEST_SIZE: Final = 16


@dataclasses.dataclass(frozen=True, slots=True)
class Model:
    """What answers; neither plan nor rule = off."""

    id: str
    trained_on: str
    plan: Plan | None = None
    rule: LinearRule | None = None

    @property
    def state(self) -> int:
        """Address of the plan for the strategy agent, 0 = none."""
        return self.plan.state if self.plan else 0

    @property
    def rule_addr(self) -> int:
        """Address of the linear rule, 0 = none."""
        return self.rule.addr if self.rule else 0

    @property
    def answers(self) -> bool:
        """Whether it is a model at all: off makes no orders."""
        return self.state != 0 or self.rule_addr != 0

    @property
    def digest(self) -> bytes:
        """16 bytes that stand for the model in the journal; zeros when off."""
        if self.plan is None and self.rule is None:
            return bytes(_DIGEST_SIZE)
        return hashlib.blake2b(self.id.encode(), digest_size=_DIGEST_SIZE).digest()

    def apply(self, normalisation: Normalisation) -> None:
        """Set the constants that the model was trained with."""
        if self.plan is not None and self.plan.manifest:
            normalisation.set(self.plan.mean, self.plan.deviation)

    def summary(self) -> dict[str, Any]:
        """Return what summary.json says."""
        manifest = self.plan.manifest if self.plan else {}
        return {
            "id": self.id,
            "trained_on": self.trained_on,
            "starved": manifest.get("starved", []),
            "verdict": manifest.get("verdict", ""),
        }


def pin(folder: pathlib.Path, model_id: str) -> None:
    """Make a model of the folder the one in use."""
    (folder / PINNED).write_text(model_id + "\n", encoding="ascii")


def pinned(folder: pathlib.Path) -> pathlib.Path | None:
    """Return the folder of the model in use, or None when none was pinned.

    Raises CommandError when the file does not hold a name.
    """
    try:
        name = (folder / PINNED).read_bytes().strip()
    except OSError:
        return None
    if not name.isalnum():  # of the ASCII kind: a name is a digest
        msg = f"{folder / PINNED}: does not name a model"
        raise CommandError(msg)
    return folder / name.decode("ascii")


def load_model(config: Config, segment: Segment, symbols_max: int) -> Model:
    """Load what `model.kind` asks for; raises CommandError when it is not there or damaged."""
    kind, folder = config.model.kind, pathlib.Path(config.model.folder)
    if kind == "off":
        return Model("off", "nothing: the model is off")
    if kind == "linear":
        rule = LinearRule(segment)
        name = "linear-" + hashlib.blake2b(rule.image, digest_size=4).hexdigest()
        return Model(name, "nothing: a fixed rule on order-book pressure, without samples", rule=rule)
    found = pinned(folder) if kind != "rule" else None
    if kind == "fusionnet" and found is None:
        msg = f"model folder {folder} has no pinned model: run `contrafusion train`, or set model.kind"
        raise CommandError(msg)
    if found is None:
        image = rule_image()
        plan = Plan.from_image(image, segment, symbols_max, seed=config.seed)
        name = "rule-" + hashlib.blake2b(image, digest_size=4).hexdigest()
        return Model(name, "nothing: a fixed rule on order-book pressure", plan)
    try:
        plan = Plan.load(found, segment, symbols_max, seed=config.seed)
    except PlanError as error:
        raise CommandError(str(error)) from None
    return Model(plan.id, str(plan.manifest["trained_on"]["source"]), plan)
