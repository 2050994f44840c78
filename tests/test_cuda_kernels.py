"""Every kernel, as compiled, on the CPU: against NumPy, over block sizes and schedules, accesses checked.

The twins are compared with independent sources: torch, TA-Lib, the plan's float64 reference, plain loops.
"""

import math

import numpy as np
import pytest
import talib
import torch
from emulator import build
from emulator.device import PtxCpuDevice
from reference import plan as reference

from bicep.cuda import ENTRIES
from bicep.cuda.cases import LABEL_SCALE, CheckError, cases, random_weights
from bicep.cuda.layout import NEWS_EMBEDDING, NEWS_HALF
from bicep.cuda.model import decode_expert, encode_model, make_jobs, model_sizes
from bicep.cuda.twins import TWINS, answer
from bicep.device import DeviceError, run
from bicep.masks import bank_key, mask_bank, philox
from bicep.plan import PlanError
from bicep.selfcheck import KNOWN_ANSWERS

emulated = pytest.mark.skipif(bool(build.missing()), reason=build.missing() or "present")
CASES = cases()
NAMES = [case.label for case in CASES]


def on_device(device, name, threads=0, sizes=None, **arguments):
    run(device, ENTRIES[name], arguments, sizes=sizes, threads=threads)
    return arguments


@emulated
@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_a_kernel_equals_its_twin_whatever_the_block_size_and_the_schedule(case):
    expected, results = case.expected(), []
    for seed, threads in ((0, 0), (1, 0), (2, 64), (3, 64)):
        arguments = case.copy()
        run(PtxCpuDevice(seed), case.entry, arguments, sizes=case.sizes, threads=threads)
        case.check(arguments, expected)
        results.append({k: v.tobytes() for k, v in case.results(arguments).items()})
    assert results[0] == results[1]  # a schedule changes no bit
    assert results[2] == results[3]


@emulated
@pytest.mark.slow
@pytest.mark.parametrize("architecture", [90, 100, 120])
def test_the_code_for_other_architectures_gives_the_same(architecture):
    device = PtxCpuDevice(5, load=lambda source: build.load(source, architecture=architecture))
    for case in cases(3):
        arguments = case.copy()
        run(device, case.entry, arguments, sizes=case.sizes)
        case.check(arguments)


@emulated
@pytest.mark.slow
@pytest.mark.parametrize("threads", [32, 96, 256, 1024])
@pytest.mark.parametrize("scale", [1, 3, 5])
def test_the_wide_sweep(scale, threads):
    for seed in range(3):
        for case in cases(100 * scale + seed, scale):
            arguments = case.copy()
            run(PtxCpuDevice(seed), case.entry, arguments, sizes=case.sizes, threads=threads)
            case.check(arguments)


@emulated
def test_the_generator_gives_the_words_of_its_authors():
    for counter, key, words in KNOWN_ANSWERS:
        out = np.zeros((1, 4), np.uint32)
        left, right = key
        counters = np.array([counter], np.uint32)
        on_device(
            PtxCpuDevice(), "philox_words", counters=counters, count=1, left=left, right=right, words=out
        )
        assert tuple(out[0]) == words


@emulated
def test_the_device_draws_the_bank_of_the_plan_bit_for_bit():
    key = bank_key(7, "weights")
    words = np.zeros((512, 192), np.uint32)
    call = {"rows": 512, "units": 192, "number": 5, "group": 0, "left": key[0], "right": key[1]}
    on_device(PtxCpuDevice(), "mask_words", **call, words=words)
    assert np.array_equal(words, mask_bank(key, 192, number=5))


@emulated
@pytest.mark.parametrize("density", [0.9, 0.25, 0.01])
def test_three_digits_find_the_score_that_keeps_a_density(density):
    weights = np.random.default_rng(1).standard_normal((37, 53)).astype(np.float32)
    wanted, device = round(density * weights.size), PtxCpuDevice()
    shared = {"weights": weights, "norms": None, "count": weights.size, "columns": 53}
    prefix, left = 0, wanted  # scores above the digit's bucket are kept already
    for bits, shift in ((11, 21), (11, 10), (10, 0)):
        counts = np.zeros(1 << bits, np.uint32)
        on_device(device, "score_histogram", **shared, prefix=prefix, shift=shift, bits=bits, counts=counts)
        from_top = np.cumsum(counts[::-1])
        digit = int(np.searchsorted(from_top, left))
        left -= int(from_top[digit - 1]) if digit else 0
        prefix = prefix << bits | ((1 << bits) - 1 - digit)
    mask, kept = np.zeros(weights.shape, np.uint8), np.zeros(1, np.uint32)
    on_device(device, "score_mask", **shared, least=prefix, mask=mask, kept=kept)
    assert kept[0] == wanted == mask.sum()
    assert np.abs(weights[mask == 1]).min() > np.abs(weights[mask == 0]).max()


@emulated
def test_nothing_is_written_behind_the_arrays_and_empty_work_is_no_work():
    device = PtxCpuDevice()
    words = np.zeros((0, 4), np.uint32)
    on_device(device, "philox_words", counters=words, count=0, left=1, right=2, words=words)
    rows = np.zeros(4, np.int32)
    empty = np.zeros(0, np.float32)
    ones = {"inner": np.ones((2, 3), np.float32), "x": np.ones((2, 5), np.float32)}
    nothing = {"rows": rows, "columns": np.zeros(0, np.int32), "dw": empty, "db": np.zeros(3, np.float32)}
    arguments = on_device(device, "masked_linear_dw", **ones, **nothing, n=2, inputs=5, outputs=3)
    assert arguments["db"].tolist() == [2, 2, 2]


@emulated
def test_the_news_half_and_the_embedding_give_the_same_answer():
    random = np.random.default_rng(4)
    experts = [random_weights(random, (64, 16), 32, 96, 0.5) for _ in range(3)]
    model = encode_model(experts, (0, 1, 2), LABEL_SCALE, key=(1, 2))
    sizes = model_sizes(model)
    whole, half = make_jobs(sizes, 3, NEWS_EMBEDDING), make_jobs(sizes, 3, NEWS_HALF)
    for jobs in (whole, half):
        jobs["expert"], jobs["mask_index"] = [0, 1, 2], 9
        jobs["features"] = random.standard_normal(32)
    whole["vector"] = random.standard_normal(96) * 0.2
    half["features"] = whole["features"]
    pairs = zip(experts, whole["vector"], strict=True)
    half["vector"] = [expert.bias_one + expert.news.astype(np.float64) @ news for expert, news in pairs]
    found = []
    for jobs in (whole, half):
        answers = np.zeros(3, np.dtype("u1")).repeat(64)
        call = {"model": model, "jobs": jobs.view(np.uint8), "job_size": jobs.dtype.itemsize, "count": 3}
        on_device(PtxCpuDevice(), "expert_batch", sizes=sizes, **call, answers=answers)
        found.append(answers.view(np.float64).reshape(3, 8)[:, :3])
    assert np.allclose(found[0], found[1], rtol=1e-5, atol=1e-9)


# ---------------------------------------------------------------- the twins against independent sources


def test_the_twin_of_the_expert_is_the_reference_of_the_plan():
    random = np.random.default_rng(2)
    experts = [random_weights(random, (64, 16), 32, 96, 0.4) for _ in range(3)]
    key = bank_key(3, "x")
    model = encode_model(experts, (0, 1, 1), LABEL_SCALE, key=key, bank_number=6)
    jobs = make_jobs(model_sizes(model), 3, NEWS_EMBEDDING)
    jobs["expert"], jobs["mask_index"] = [0, 1, 2], [5, 6, 511]
    jobs["features"], jobs["vector"] = random.standard_normal((3, 32)), random.standard_normal((3, 96)) * 0.2
    bank = mask_bank(key, 80, number=6)
    for job, served in zip(jobs, (0, 1, 1), strict=True):
        found = answer(model, np.frombuffer(job.tobytes(), np.uint8))[0]
        features = job["features"].astype(np.float32)
        wanted = reference.infer(
            experts[served], features, job["vector"], bank[job["mask_index"]], LABEL_SCALE
        )
        assert (found["served"], found["expert"]) == (served, job["expert"])
        for name in ("mean", "epistemic", "aleatoric", "agree"):
            assert found[name] == pytest.approx(getattr(wanted, name), rel=1e-9), name


def test_a_model_holds_its_weights_and_no_zero():
    random = np.random.default_rng(8)
    experts = [random_weights(random, (64, 16), 32, 96, 0.3) for _ in range(3)]
    model = encode_model(experts, (0, 0, 2), LABEL_SCALE)
    for tag, served in ((0, 0), (1, 0), (2, 2)):
        weights, number = decode_expert(model, tag)
        assert number == served
        for name in (
            "tech",
            "news",
            "second",
            "bias_one",
            "bias_two",
            "mean_head",
            "variance_head",
            "biases",
        ):
            assert np.array_equal(getattr(weights, name), getattr(experts[served], name)), name
    assert len(model) < len(encode_model(experts, (0, 1, 2), LABEL_SCALE)) * 0.75
    with pytest.raises(PlanError, match="samples"):
        encode_model(experts, (0, 1, 2), LABEL_SCALE, groups=33)
    with pytest.raises(PlanError, match="shapes"):
        encode_model([experts[0], random_weights(random, (64, 8), 32, 96, 1)], (0, 1), LABEL_SCALE)


def test_the_twins_of_the_linear_layer_are_torch():
    random = np.random.default_rng(6)
    x, weights, grad = (random.standard_normal(s).astype(np.float32) for s in ((9, 20), (7, 20), (9, 7)))
    bias, mask = random.standard_normal(7).astype(np.float32), (random.random((7, 20)) < 0.5).astype(np.uint8)
    sizes = {"n": 9, "inputs": 20, "outputs": 7}
    how = {"activate": 1, "drop": 0, "number": 0, "left": 0, "right": 0}
    pre, y, inner, dx = (np.zeros(s) for s in ((9, 7), (9, 7), (9, 7), (9, 20)))
    TWINS["masked_linear"](x=x, weights=weights, mask=mask, bias=bias, **sizes, **how, pre=pre, y=y)
    TWINS["masked_linear_inner"](grad=grad, pre=pre, n=9, outputs=7, **how, inner=inner)
    TWINS["masked_linear_dx"](inner=inner, weights=weights, mask=mask, **sizes, dx=dx)
    rows = np.concatenate([[0], np.cumsum(mask.sum(1))]).astype(np.int32)
    dw, db = np.zeros(rows[-1]), np.zeros(7)
    columns = np.nonzero(mask)[1].astype(np.int32)
    TWINS["masked_linear_dw"](inner=inner, x=x, rows=rows, columns=columns, **sizes, dw=dw, db=db)
    tx, tw, tb = (torch.tensor(a, dtype=torch.float64, requires_grad=True) for a in (x, weights, bias))
    out = torch.nn.functional.gelu(
        torch.nn.functional.linear(tx, tw * torch.tensor(mask), tb), approximate="tanh"
    )
    out.backward(torch.tensor(grad, dtype=torch.float64))
    assert np.allclose(y, out.detach().numpy(), atol=1e-12)
    assert np.allclose(dx, tx.grad.numpy(), atol=1e-12)
    assert np.allclose(dw, tw.grad.numpy()[mask == 1], atol=1e-12)
    assert np.allclose(db, tb.grad.numpy(), atol=1e-12)
    assert (tw.grad.numpy()[mask == 0] == 0).all()


def test_dropout_of_the_linear_layer_uses_the_bank_of_the_masks():
    y, how = np.zeros((70, 5)), {"activate": 0, "drop": 1, "number": 3, "left": 11, "right": 12}
    ones = {
        "x": np.ones((70, 1)),
        "weights": np.ones((5, 1)),
        "mask": np.ones((5, 1)),
        "bias": None,
        "pre": None,
    }
    TWINS["masked_linear"](**ones, n=70, inputs=1, outputs=5, **how, y=y)
    bank = mask_bank((11, 12), 5, rows=3, number=3)
    for row in range(70):
        for unit in range(5):
            kept = int(bank[row // 32, unit]) >> (row % 32) & 1
            assert y[row, unit] == pytest.approx(kept * 8 / 7)


def test_the_twins_of_indicators_are_ta_lib():
    case = next(case for case in CASES if case.entry.name == "indicators")
    rsi, ema, macd, signal, atr = case.expected()["out"]
    for n in (0, 17, 129):
        close, high, low = (
            np.ascontiguousarray(case.arguments[name][:, n]) for name in ("close", "high", "low")
        )
        macds = talib.MACD(close, 12, 26, 9)
        wanted = (
            talib.RSI(close, 14),
            talib.EMA(close, 20),
            macds[0],
            macds[1],
            talib.ATR(high, low, close, 14),
        )
        for ours, theirs in zip((rsi, ema, macd, signal, atr), wanted, strict=True):
            assert np.allclose(ours[:, n], theirs, atol=1e-8, equal_nan=True)
    assert (rsi[14:, 5] == 50).all()  # a market that never moved


def test_the_twin_of_the_correlation_is_numpy():
    case = next(case for case in CASES if case.entry.name == "rolling_correlation")
    out, values = case.expected()["out"], case.arguments["values"]
    for time in (19, 40, 69):
        window = values[time - 19 : time + 1]
        assert out[0, time] == pytest.approx(np.corrcoef(window[:, 0], window[:, 1])[0, 1])
    assert np.allclose(out[1, 19:], 1)
    assert (out[2, 19:] == 0).all()
    assert np.isnan(out[:, :19]).all()


def test_the_twin_of_the_paths_is_the_loop_of_its_formula():
    last, lowest, highest = np.zeros((3, 1, 2))
    one = {"spot": np.array([50.0]), "drift": np.array([1e-3]), "volatility": np.array([0.02])}
    call = {"assets": 1, "paths": 2, "steps": 6, "number": 4, "left": 5, "right": 6}
    TWINS["price_paths"](**one, **call, last=last, lowest=lowest, highest=highest)
    for path in range(2):
        price, seen = 0.0, [0.0]
        for step in range(6):
            words = philox(np.array([[path, step // 4, 0, 4]], np.uint32), (5, 6))[0]
            pair = words[step % 4 // 2 * 2 :][:2].astype(np.float64)
            radius = math.sqrt(-2 * math.log((pair[0] + 0.5) / 2**32))
            angle = 2 * math.pi * (pair[1] + 0.5) / 2**32
            normal = radius * (math.cos(angle) if step % 2 == 0 else math.sin(angle))
            price += 1e-3 - 0.02**2 / 2 + 0.02 * normal
            seen.append(price)
        ends = [50 * math.exp(value) for value in (price, min(seen), max(seen))]
        assert [last[0, path], lowest[0, path], highest[0, path]] == pytest.approx(ends)


def test_paths_have_the_moments_of_the_model():
    last, lowest, highest = np.zeros((3, 1, 20_000))
    one = {"spot": np.array([100.0]), "drift": np.array([0.001]), "volatility": np.array([0.02])}
    call = {"assets": 1, "paths": 20_000, "steps": 25, "number": 0, "left": 1, "right": 2}
    TWINS["price_paths"](**one, **call, last=last, lowest=lowest, highest=highest)
    assert last.mean() == pytest.approx(100 * math.exp(0.025), abs=5 * 10 / math.sqrt(20_000))
    assert np.log(last).std() == pytest.approx(0.1, rel=0.03)
    assert (lowest <= np.minimum(last, 100)).all()
    assert (highest >= np.maximum(last, 100)).all()


def test_a_case_notices_a_wrong_result():
    case = next(case for case in CASES if case.entry.name == "masked_linear")
    wrong = case.expected()
    wrong["y"] = wrong["y"] + 1e-3
    with pytest.raises(CheckError, match="y differs"):
        case.check(wrong)
    wrong["y"][0, 0] = np.nan
    with pytest.raises(CheckError, match="NaN"):
        case.check(wrong)


@emulated
def test_an_argument_that_is_missing_or_too_small_is_seen():
    case = CASES[0]
    with pytest.raises(KeyError):
        run(PtxCpuDevice(), case.entry, {k: v for k, v in case.copy().items() if k != "words"})
    short = case.copy()
    short["counters"] = short["counters"][:-1].copy()
    with pytest.raises(DeviceError, match="outside every allocation"):
        run(PtxCpuDevice(), case.entry, short)
