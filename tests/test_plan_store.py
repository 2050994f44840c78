"""Masks and files of a plan: known answers, round trips, and one clear line for every fault."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.plans import SCALE, random_weights

from bicep.masks import bank_key, mask_bank, philox
from bicep.plan import Plan, PlanError, decode, encode, read_manifest, save
from bicep.plan.layout import PLAN_FILE, SLOT
from bicep.plan.pack import check_image

ROOT = pathlib.Path(__file__).resolve().parents[1]
HIDDEN = (64, 8)
MANIFEST = {
    "seed": 7,
    "trained_on": {"rows": 10},
    "features": [f"f{n}" for n in range(32)],
    "normalisation": {"mean": [0.5] * 32, "deviation": [2.0] * 31 + [0.0]},
    "horizon_ns": 60_000_000_000,
    "starved": [],
    "metrics": {},
}


def _experts():
    return [random_weights(n, HIDDEN) for n in range(3)]


@pytest.fixture(scope="module")
def image():
    return encode(_experts(), (0, 1, 2), SCALE)


# Known answers of Random123 (kat_vectors): counter, key, result.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN)
def test_the_generator_gives_the_known_answers(counter, key, result):
    assert tuple(philox(np.array([counter], np.uint32), key)[0]) == result


def test_an_eighth_of_the_mask_bits_drop_and_units_do_not_repeat():
    bank = mask_bank(bank_key(3, "weights"), 192)
    bits = np.unpackbits(bank.view(np.uint8))
    assert abs(1 - bits.mean() - 1 / 8) < 5 * np.sqrt(7 / 64 / len(bits))
    assert len(np.unique(bank, axis=0)) == 512
    assert len(np.unique(bank, axis=1).T) == 192
    shared = np.unpackbits((bank[:, 1:] & bank[:, :-1]).view(np.uint8)).mean()
    assert abs(shared - (7 / 8) ** 2) < 1e-3  # neighbouring units drop independently
    assert (bank != mask_bank(bank_key(4, "weights"), 192)).any()
    assert (bank != mask_bank(bank_key(3, "other"), 192)).any()
    assert (bank != mask_bank(bank_key(3, "weights"), 192, number=1)).any()
    assert (mask_bank(bank_key(3, "weights"), 64, rows=8) == bank[:8, :64]).all()


def test_weights_survive_the_file(image):
    for ours, back in zip(_experts(), decode(image), strict=True):
        for field in (
            "tech",
            "news",
            "bias_one",
            "second",
            "bias_two",
            "mean_head",
            "variance_head",
            "biases",
        ):
            assert (getattr(ours, field) == getattr(back, field)).all()


def test_a_saved_model_loads_with_its_manifest_and_constants(tmp_path, image):
    manifest = save(tmp_path, image, MANIFEST)
    plan = Plan.load(tmp_path / manifest["id"], symbols_max=4)
    assert (plan.id, plan.manifest["seed"]) == (manifest["id"], 7)
    assert (plan.mean == 0.5).all()
    assert plan.deviation[-1] == 0.0
    assert [path.name for path in tmp_path.iterdir()] == [manifest["id"]]


def test_the_id_is_a_digest_of_weights_and_manifest(tmp_path, image):
    one = save(tmp_path, image, MANIFEST)["id"]
    assert save(tmp_path, image, MANIFEST)["id"] == one
    assert save(tmp_path, image, {**MANIFEST, "seed": 8})["id"] != one
    assert save(tmp_path, encode(_experts()[::-1], (0, 1, 2), SCALE), MANIFEST)["id"] != one


def _spoil_manifest(folder, **changes):
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


FAULTS = [
    (lambda f: (f / "manifest.json").unlink(), "manifest.json: cannot be read: No such file"),
    (lambda f: (f / "manifest.json").write_text("{"), "not a manifest"),
    (lambda f: (f / "manifest.json").write_text("[]"), "not a manifest"),
    (lambda f: (f / "manifest.json").write_bytes(b"\xff\xfe"), "not a manifest"),
    (lambda f: _spoil_manifest(f, schema=2), "schema 2, this program reads 1"),
    (lambda f: _spoil_manifest(f, seed=None), "seed is missing"),
    (lambda f: _spoil_manifest(f, metrics={"ic": 1.0}), "does not match the id"),
    (lambda f: (f / "weights.bicep").unlink(), "weights.bicep: cannot be read: No such file"),
    (lambda f: (f / "weights.bicep").write_bytes(b""), "does not match the manifest"),
]


@pytest.mark.parametrize(("spoil", "words"), FAULTS)
def test_a_damaged_model_is_refused_with_one_line(tmp_path, image, spoil, words):
    folder = tmp_path / save(tmp_path, image, MANIFEST)["id"]
    spoil(folder)
    with pytest.raises(PlanError, match=words) as caught:
        Plan.load(folder, symbols_max=4)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "constants",
    [{"mean": [0.0] * 31, "deviation": [1.0] * 32}, {"mean": [0.0] * 32, "deviation": [-1.0] * 32}, {}],
)
def test_bad_normalisation_constants_are_refused(tmp_path, image, constants):
    manifest = save(tmp_path, image, {**MANIFEST, "normalisation": constants})
    with pytest.raises(PlanError, match="normalisation"):
        Plan.load(tmp_path / manifest["id"], symbols_max=4)


def _changed(image, field, value, slot=None):
    copy = bytearray(image)
    if slot is None:
        np.frombuffer(copy, PLAN_FILE.dtype, 1)[field] = value
    else:
        np.frombuffer(copy, SLOT.dtype, 3, PLAN_FILE.size)[field][slot] = value
    return bytes(copy)


@pytest.mark.parametrize(
    ("field", "value", "slot", "words"),
    [
        ("magic", 1, None, "not a plan"),
        ("version", 9, None, "version 9"),
        ("samples", 16, None, "16 samples"),
        ("size", 5, None, "header says 5"),
        ("n_tech", 0, None, "n_tech is 0"),
        ("hidden_one", 100, None, "hidden_one is 100"),
        ("experts", 2, None, "experts is 2"),
        ("rungs", 17, None, "rungs is 17"),
        ("label_scale", np.nan, None, "label_scale"),
        ("pack", 1 << 40, 1, "slot 1"),
        ("pack", -64, 1, "slot 1"),
        ("pack", 256 + 1, 1, "slot 1"),
        ("news_size", 64, 2, "slot 2"),
        ("kind", 2, 0, "kind 2"),
        ("served", 3, 0, "served by 3"),
        ("served", 1, 0, None),
    ],
)
def test_a_wrong_field_of_a_plan_file_is_named(image, field, value, slot, words):
    changed = _changed(image, field, value, slot)
    if words is None:  # one tag served by another is a good plan
        check_image(changed)
        return
    with pytest.raises(PlanError, match=words):
        check_image(changed)


def test_a_chain_of_stand_ins_is_refused(image):
    chained = _changed(_changed(image, "served", 1, 0), "served", 2, 1)
    with pytest.raises(PlanError, match="does not serve itself"):
        check_image(chained)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_refused_both_ways(image, bad):
    experts = _experts()
    experts[2].second[3, 3] = bad
    with pytest.raises(PlanError, match="NaN or infinite"):
        encode(experts, (0, 1, 2), SCALE)
    copy = bytearray(image)
    copy[-64:-60] = np.float32(bad).tobytes()
    with pytest.raises(PlanError, match="NaN or infinite"):
        check_image(bytes(copy))


def test_experts_of_different_shapes_are_refused():
    experts = _experts()
    experts[1] = random_weights(1, (64, 16))
    with pytest.raises(PlanError, match="different shapes"):
        encode(experts, (0, 1, 2), SCALE)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_mangled_plan_file_is_refused_or_sound(image, data):
    copy = bytearray(image)
    for _ in range(data.draw(st.integers(1, 4))):
        copy[data.draw(st.integers(0, PLAN_FILE.size + 3 * SLOT.size - 1))] = data.draw(st.integers(0, 255))
    try:
        _, slots = check_image(bytes(copy[: data.draw(st.sampled_from([len(copy), 100, 0, 64]))]))
    except PlanError:
        return
    for at, size in (("pack", "pack_size"), ("news", "news_size")):
        assert (slots[at] + slots[size] <= len(image)).all()


def test_loading_imports_no_training_framework(tmp_path, image):
    folder = tmp_path / save(tmp_path, image, MANIFEST)["id"]
    code = (
        "import pathlib, sys; from bicep.plan import Plan; "
        f"Plan.load(pathlib.Path({str(folder)!r}), symbols_max=4); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_an_unwritable_folder_is_one_line(tmp_path, image):
    blocked = tmp_path / "file"
    blocked.write_text("x")
    with pytest.raises(PlanError, match="cannot be written"):
        save(blocked, image, MANIFEST)


def test_a_manifest_can_be_read_alone(tmp_path, image):
    manifest = save(tmp_path, image, MANIFEST)
    assert read_manifest(tmp_path / manifest["id"]) == manifest
