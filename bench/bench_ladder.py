"""What each rung loses: nets trained on generated data, pruned at once and trained on under their masks.

Run: python -m pytest bench/bench_ladder.py -s.  Printed per rung: weights kept, likelihood per row of later
data and how much of it pruning costs, the error NANopt budgets, and analytic over sampled variance.
"""

from __future__ import annotations

import numpy as np
from reference.plans import SCALE
from reference.trained import trained, tuned

from bench.results import append_row
from bicep import calibration
from bicep.plan import LADDER, MC_32, Rung, encode, ladder

EPOCHS = 3  # of a rung, under its mask


def _likelihood(image, fitted, rung):
    """Return the mean Gaussian negative log likelihood of later rows, in nats, with the serving kernel."""
    rows = fitted.calibration(len(fitted.later))
    out = calibration.Asked(image, rows).ask(rung, MC_32, 0)
    variance = (out["epistemic"] + out["aleatoric"]) / SCALE**2
    error = fitted.later.label.numpy() - out["mean"] / SCALE
    return float(np.mean(0.5 * (np.log(2 * np.pi * variance) + error**2 / variance)))


def test_the_loss_of_each_rung(capsys):
    fitted = trained(20_000, (128, 64), epochs=6)
    weights = [
        tuned(net, 1.0, fitted.train.take(np.flatnonzero(fitted.train.tag == tag)), EPOCHS)
        for tag, net in enumerate(fitted.nets)
    ]  # as long as the rungs are
    rungs = [Rung(1.0)]
    for density in LADDER[1:]:
        experts = [
            tuned(net, density, fitted.train.take(np.flatnonzero(fitted.train.tag == tag)), EPOCHS)
            for tag, net in enumerate(fitted.nets)
        ]
        rungs.append(Rung(density, experts))
    with capsys.disabled():
        print()
        for name, steps in (("pruned at once", ladder()), (f"{EPOCHS} epochs under its mask", rungs)):
            image, entry = calibration.calibrate(
                encode(weights, (0, 1, 2), SCALE, steps), fitted.calibration()
            )
            dense = _likelihood(image, fitted, 0)
            for rung in entry["rungs"]:
                n, loss = rung["rung"], _likelihood(image, fitted, rung["rung"])
                ratios = ", ".join(f"{q:.2f}" for q in entry["analytic"]["variance_ratio_p05_p50_p95"][n])
                said = "calibrated" if entry["analytic"]["is_calibrated"][n] else "not calibrated"
                print(
                    f"{name}: density {rung['density']:4}, kept {rung['kept'][0]:5}, nll {loss:.4f} "
                    f"({loss - dense:+.4f}), error {max(rung['error']):.3f}, analytic {ratios}: {said}"
                )
                form = "once" if steps is not rungs else "tuned"
                append_row(
                    f"ladder_{form}_{rung['density']}_nll", len(fitted.later), loss, ratio=loss - dense
                )
