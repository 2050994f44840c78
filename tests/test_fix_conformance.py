"""The acceptor against acceptance definitions that we did not write."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import pytest
from conftest import SHARED
from fix_echo import EchoAcceptor

FOLDER = SHARED / "conformance"
SESSION = (
    "10_MsgSeqNumEqual", "10_MsgSeqNumGreater", "10_MsgSeqNumLess", "11a_NewSeqNoGreater",
    "11b_NewSeqNoEqual", "11c_NewSeqNoLess", "13b_UnsolicitedLogoutMessage",
    "15_HeaderAndBodyFieldsOrderedDifferently", "19a_PossResendMessageThatHAsAlreadyBeenSent",
    "19b_PossResendMessageThatHasNotBeenSent", "1a_ValidLogonMsgSeqNumTooHigh",
    "1a_ValidLogonWithCorrectMsgSeqNum", "1b_DuplicateIdentity", "1c_InvalidSenderCompID",
    "1c_InvalidTargetCompID", "1d_InvalidLogonBadSendingTime", "1d_InvalidLogonLengthInvalid",
    "1d_InvalidLogonWrongBeginString", "1e_NotLogonMessage", "20_SimultaneousResendRequest",
    "21_RepeatingGroupSpecifierWithValueOfZero", "2a_MsgSeqNumCorrect", "2b_MsgSeqNumTooHigh",
    "2c_MsgSeqNumTooLow", "2d_GarbledMessage", "2e_PossDupAlreadyReceived", "2e_PossDupNotReceived",
    "2f_PossDupOrigSendingTimeTooHigh", "2g_PossDupNoOrigSendingTime", "2i_BeginStringValueUnexpected",
    "2k_CompIDDoesNotMatchProfile", "2m_BodyLengthValueNotCorrect", "2o_SendingTimeValueOutOfRange",
    "2q_MsgTypeNotValid", "2r_UnregisteredMsgType", "2t_FirstThreeFieldsOutOfOrder", "3b_InvalidChecksum",
    "3c_GarbledMessage", "4b_ReceivedTestRequest", "7_ReceiveRejectMessage", "8_AdminAndApplicationMessages",
    "8_OnlyAdminMessages", "8_OnlyApplicationMessages", "AlreadyLoggedOn", "SessionReset",
)  # fmt: skip
SLOW = ("4a_NoDataSentDuringHeartBtInt", "6_SendTestRequest")
# These want a data dictionary: unknown, missing, empty, mistyped, repeated and misplaced fields, and the
# routing tags of its rejects.
DICTIONARY = (
    "14a_BadField", "14b_RequiredFieldMissing", "14c_TagNotDefinedForMsgType", "14d_TagSpecifiedWithoutValue",
    "14e_IncorrectEnumValue", "14f_IncorrectDataFormat", "14g_HeaderBodyTrailerFieldsOutOfOrder",
    "14h_RepeatedTag", "14i_RepeatingGroupCountNotEqual", "RejectResentMessage", "ReverseRoute",
    "ReverseRouteWithEmptyRoutingTags",
)  # fmt: skip

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"acceptance definitions are absent: {FOLDER}")


def play(name: str) -> str:
    """Play a definition against a fresh acceptor; return what the player says."""
    acceptor = EchoAcceptor()
    command = [sys.executable, str(FOLDER / "runner.py"), "--port", str(acceptor.port)]
    try:
        done = subprocess.run(
            [*command, str(FOLDER / "fix44" / f"{name}.def")], capture_output=True, text=True, check=False,
            timeout=120,
        )  # fmt: skip
    finally:
        acceptor.close()
    return done.stdout + done.stderr


@pytest.mark.parametrize("name", SESSION)
def test_the_acceptor_passes(name):
    assert "1 passed, 0 failed" in (said := play(name)), said


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_the_acceptor_passes_what_takes_its_time(name):
    assert "1 passed, 0 failed" in (said := play(name)), said


def test_every_definition_is_played_or_named():
    found = {path.stem for path in (FOLDER / "fix44").glob("*.def")}
    assert found == {*SESSION, *SLOW, *DICTIONARY}


def test_the_player_can_fail():
    assert "0 passed, 1 failed" in play(DICTIONARY[0])


def test_the_definitions_are_where_the_product_is_not():
    assert pathlib.Path(__file__).resolve().parents[1] not in FOLDER.resolve().parents
