"""The self-check: what it says without a GPU, that it passes on an emulated one, and that it can fail."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from emulator import build
from emulator.device import PtxCpuDevice

from bicep import device, selfcheck
from bicep.device import DeviceError, open_device
from bicep.selfcheck import Effort
from bicep.spectrum import cross_correlation, power, spectral_features

emulated = pytest.mark.skipif(bool(build.missing()), reason=build.missing() or "present")
LITTLE = Effort(jobs=2, repeats=1, sizes=(1, 2), hidden=(64, 8), threads=64)


@pytest.mark.skipif(not device.absent(), reason="this machine has a GPU")
def test_without_a_gpu_it_says_so_and_passes(capsys):
    assert selfcheck.main(["--no-compile"]) == 0
    out = capsys.readouterr().out
    assert "no GPU: " in out
    assert out.splitlines()[-1].startswith("PASS 18 of 18 checks, digest ")
    assert selfcheck.main(["--no-compile", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["ok"], result["costs"]) == (True, None)
    assert len(result["rows"]) == 18


@pytest.mark.skipif(not device.absent(), reason="this machine has a GPU")
def test_a_gpu_that_was_asked_for_and_is_absent_is_an_error(capsys):
    assert selfcheck.main(["--device", "cuda"]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1
    with pytest.raises(DeviceError):
        open_device("cuda")
    assert open_device("auto")[0] is None
    assert open_device("cpu") == (None, "the CPU was asked for")
    with pytest.raises(DeviceError, match="auto, cpu or cuda"):
        open_device("tpu")


def test_it_is_a_program():
    words = [sys.executable, "-m", "bicep.selfcheck", "--help"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert "every kernel against NumPy" in done.stdout


@emulated
def test_on_an_emulated_device_every_check_passes():
    rows, costs = selfcheck.check_device(PtxCpuDevice(0), LITTLE)
    assert [row for row in rows if not row.ok] == []
    assert costs is not None
    assert {row.what.split(" ")[0] for row in rows} >= {
        "masked_linear",
        "expert_batch",
        "price_paths",
        "expert,",
    }
    assert selfcheck.digest(rows) == selfcheck.digest([*rows])
    rows[0].ok = False
    assert selfcheck.digest(rows) != selfcheck.digest(rows[1:])


@emulated
def test_a_wrong_kernel_and_a_lost_device_fail():
    from bicep.cuda import read_source

    wrong = read_source("structured.cu").replace("above_a < 2", "above_a < 1")
    libraries = {"structured.cu": build.load("structured.cu", {"structured.cu": wrong})}
    rows = selfcheck.check_kernels(PtxCpuDevice(0, libraries=libraries), LITTLE)
    assert {row.what for row in rows if not row.ok} == {"mask_2_4 0", "compress_2_4 0"}
    assert all("differs" in row.note for row in rows if not row.ok)
    rows = selfcheck.check_kernels(PtxCpuDevice(0, lose_after=2), LITTLE)
    assert sum(row.ok for row in rows) == 1
    assert "lost" in rows[-1].note


def test_a_kernel_over_its_budget_fails(monkeypatch):
    if selfcheck.nvrtc.absent():
        pytest.skip(selfcheck.nvrtc.absent())
    import dataclasses

    tight = {name: dataclasses.replace(e, registers=4) for name, e in selfcheck.ENTRIES.items()}
    monkeypatch.setattr(selfcheck, "ENTRIES", tight)
    monkeypatch.setattr(selfcheck, "SOURCES", ("structured.cu",))
    rows = selfcheck.check_compiler()
    assert [row.ok for row in rows] == [False] * 4
    assert "over budget" in rows[0].note


def test_a_wrong_generator_fails(monkeypatch):
    monkeypatch.setattr(selfcheck, "philox", lambda counters, _: np.zeros_like(counters))
    assert not selfcheck.check_cpu()[0].ok


def test_the_page_names_every_kernel_and_the_number_of_planted_bugs():
    import test_cuda_mutants

    page = (pathlib.Path(__file__).parents[1] / "docs" / "cuda.md").read_text()
    assert [name for name in selfcheck.ENTRIES if f"`{name}`" not in page] == []
    assert f"{len(test_cuda_mutants.MUTANTS)} planted bugs" in page


# ---------------------------------------------------------------- spectra


def test_the_power_is_the_sum_of_squares_and_a_wave_is_at_its_frequency():
    bars = 96
    wave = np.sin(2 * np.pi * 8 * np.arange(bars) / bars)
    noise = np.random.default_rng(1).standard_normal(bars)
    series = np.stack([wave, noise, np.ones(bars)], axis=1)
    spectrum = power(series)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(bars) / bars)
    squares = (((series - series.mean(0)) * window[:, None]) ** 2).sum(0)
    assert spectrum.sum(0) == pytest.approx(squares)
    assert power(series[:-1]).sum(0)[2] == pytest.approx(0)
    assert spectrum[:, 0].argmax() == 8


def test_spectral_features_know_a_cycle_from_noise_and_from_silence():
    bars = 257
    time = np.arange(bars)
    returns = np.stack(
        [0.01 * np.sin(2 * np.pi * time / 16), 0.01 * np.random.default_rng(2).standard_normal(bars)]
    )
    prices = 100 * np.exp(np.cumsum(np.vstack([returns, np.zeros(bars)]), axis=1)).T
    found = spectral_features(prices)
    assert found["period"][0] == pytest.approx(16)
    assert found["share_1"][0] > 0.95
    assert found["flatness"][0] < 0.05
    assert found["flatness"][1] > 0.3
    assert sum(found[f"share_{n}"] for n in range(3))[:2] == pytest.approx(1)
    assert all(values[2] == 0 for values in found.values())


def test_the_cross_correlation_finds_a_lag():
    one = np.random.default_rng(4).standard_normal(128)
    found = cross_correlation(np.roll(one, 5), one)
    assert found.argmax() == 5
    assert found[5] == pytest.approx(1)
    centred = one - one.mean()
    direct = [
        np.dot(np.roll(centred, -k), np.roll(centred, 0)) / np.dot(centred, centred) for k in range(128)
    ]
    assert cross_correlation(one, one) == pytest.approx(np.array(direct))
    assert (cross_correlation(np.ones(8), np.ones(8)) == 0).all()
