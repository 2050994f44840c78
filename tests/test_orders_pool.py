"""The order pool: ClOrdIDs, the list of open orders, and what is never used twice."""

import ctypes

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.fix import ALPHABET, identifier

from nimbus.fix.digits import id_number, put_id
from nimbus.orders.executions import (
    DIFFERENT,
    FULL,
    NEARLY_FULL,
    SAME,
    STORED,
    UNKNOWABLE,
    UNSEEN,
    create_executions,
    lookup,
    text_hash,
)
from nimbus.orders.executions import insert as remember
from nimbus.orders.pool import (
    CAUSE_MAX,
    NUMBER_MAX,
    Pool,
    close,
    find,
    has_room,
    next_cancel_id,
    order_at,
    prepare,
    take,
    take_cancel_id,
)
from ringbuf.segment import Segment

BUFFER = ctypes.create_string_buffer(32)
AT = ctypes.addressof(BUFFER)


def pool(**settings_):
    return Pool(
        Segment.anonymous(1 << 20),
        "pool",
        **({"epoch": 7, "orders_max": 1000, "open_orders_max": 500} | settings_),
    )


def add(p, cause=1):
    order = prepare(p.addr, cause)
    take(p.addr)
    return order


@settings(max_examples=300, deadline=None)
@given(epoch=st.integers(0, 2**20 - 1), number=st.integers(0, 2**60 - 1))
def test_an_identifier_is_base_32_and_decodes_to_its_number(epoch, number):
    put_id(AT, epoch, number)
    assert BUFFER.raw[:16].decode() == identifier(epoch, number)
    assert id_number(AT) == number


def test_a_cl_ord_id_is_epoch_order_and_cause():
    p = pool(epoch=2**20 - 1)
    order = add(p, CAUSE_MAX)
    assert bytes(p.taken[0]["cl_ord_id"]).decode() == "VVVV" + "00001" + "VVVVVVV"
    assert order == order_at(p.addr, 1)


@settings(max_examples=200, deadline=None)
@given(
    causes=st.lists(st.integers(0, CAUSE_MAX), min_size=1, max_size=30),
    wrong=st.integers(0, 15),
    letter=st.sampled_from(ALPHABET + "W\x00~"),
)
def test_an_order_is_found_by_its_cl_ord_id_and_by_no_other(causes, wrong, letter):
    p = pool()
    for cause in causes:
        add(p, cause)
    for number in (1, len(causes)):
        text = bytearray(p.taken[number - 1]["cl_ord_id"])
        BUFFER.raw = bytes(text).ljust(32, b"\0")
        assert find(p.addr, AT, 16) == order_at(p.addr, number)
        assert find(p.addr, AT, 15) == 0
        assert find(p.addr, AT, 17) == 0
        if text[wrong] != ord(letter):
            text[wrong] = ord(letter)
            BUFFER.raw = bytes(text).ljust(32, b"\0")
            assert find(p.addr, AT, 16) == 0 or bytes(text) in [bytes(t) for t in p.taken["cl_ord_id"]]


@settings(max_examples=200, deadline=None)
@given(st.binary(min_size=16, max_size=16))
def test_any_sixteen_bytes_find_nothing_in_an_empty_pool(text):
    BUFFER.raw = text.ljust(32, b"\0")
    assert find(pool().addr, AT, 16) == 0


def test_no_cancel_request_has_the_id_of_an_order_or_of_another_request():
    p, seen = pool(orders_max=1000), set()
    for _ in range(1000):
        add(p, 5)
        close(p.addr, p.count)
    seen.update(bytes(t) for t in p.taken["cl_ord_id"])
    for _ in range(1000):
        assert next_cancel_id(p.addr, AT, 5)
        take_cancel_id(p.addr)
        seen.add(BUFFER.raw[:16])
    assert len(seen) == 2000


def test_the_numbers_of_cancel_requests_end_before_they_wrap():
    p = pool()
    p._state[0]["cancels"] = NUMBER_MAX - 1000 - 1
    assert next_cancel_id(p.addr, AT, 5)
    take_cancel_id(p.addr)
    assert not next_cancel_id(p.addr, AT, 5)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(st.integers(-(2**63), 2**63 - 1), st.just(CAUSE_MAX + 1)), max_size=20))
def test_a_cancel_request_has_an_id_of_its_own_whatever_its_cause(causes):
    p, seen = pool(), set()
    for number, cause in enumerate(causes, 1):
        assert next_cancel_id(p.addr, AT, cause)
        assert take_cancel_id(p.addr) == number
        assert id_number(AT) == (1000 + number) << 35 | cause & CAUSE_MAX
        seen.add(BUFFER.raw[:16])
    assert len(seen) == len(causes)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_the_list_of_open_orders_is_a_list_in_the_order_taken(data):
    p, model = pool(), []
    for _ in range(data.draw(st.integers(0, 60))):
        if model and data.draw(st.booleans()):
            number = data.draw(st.sampled_from(model))
            close(p.addr, number)
            model.remove(number)
        else:
            add(p)
            model.append(p.count)
        assert p.open_numbers() == model
        assert p.open_count == len(model)


def test_a_slot_is_never_used_again_and_the_pool_ends():
    p = pool(orders_max=3)
    for _ in range(3):
        assert has_room(p.addr)
        add(p)
        close(p.addr, p.count)
    assert not has_room(p.addr)
    assert [order_at(p.addr, n) for n in (0, 4, -1, 2**40)] == [0, 0, 0, 0]


@pytest.mark.parametrize(
    "wrong",
    [{"epoch": 2**20}, {"epoch": -1}, {"orders_max": 0}, {"orders_max": 2**24}, {"open_orders_max": 0}],
)
def test_a_capacity_that_the_cl_ord_id_cannot_hold_is_refused(wrong):
    with pytest.raises(ValueError, match="out of range"):
        pool(**wrong)


def test_an_execution_is_seen_after_it_was_stored_and_other_contents_are_told_apart():
    segment = Segment.anonymous(1 << 16)
    table = create_executions(segment, "executions", 4)
    assert lookup(table, 5, 1) == UNSEEN
    assert remember(table, 5, 1) == STORED
    assert remember(table, 9, 2) == STORED  # the same place: probed
    assert [lookup(table, 5, 1), lookup(table, 5, 2), lookup(table, 9, 2), lookup(table, 13, 1)] == [
        SAME,
        DIFFERENT,
        SAME,
        UNSEEN,
    ]
    assert [remember(table, 13, 1), remember(table, 17, 1), remember(table, 21, 1)] == [
        NEARLY_FULL,
        NEARLY_FULL,
        FULL,
    ]
    assert lookup(table, 21, 1) == UNKNOWABLE
    assert [lookup(table, 13, 1), lookup(table, 13, 2)] == [SAME, DIFFERENT]
    with pytest.raises(ValueError, match="power of two"):
        create_executions(Segment.anonymous(1 << 16), "executions", 6)


def test_exec_ids_hash_apart():
    hashes = set()
    texts = [f"{n}".encode() for n in range(20_000)] + [b"0" * n for n in range(1, 33)]
    for text in texts:
        BUFFER.raw = text.ljust(32, b"\0")
        hashes.add(text_hash(AT, len(text)))
    assert len(hashes) == len(set(texts))
    assert 0 not in hashes
