"""FIX tags by name, and the statuses of the FIX kernels."""

from __future__ import annotations

from typing import Final

AVG_PX, BEGIN_SEQ_NO, BEGIN_STRING, BODY_LENGTH, CHECK_SUM = 6, 7, 8, 9, 10
CL_ORD_ID, CUM_QTY, END_SEQ_NO, EXEC_ID, EXEC_REF_ID = 11, 14, 16, 17, 19
LAST_PX, LAST_QTY, MSG_SEQ_NUM, MSG_TYPE, NEW_SEQ_NO = 31, 32, 34, 35, 36
ORDER_ID, ORDER_QTY, ORD_STATUS, ORD_TYPE, ORIG_CL_ORD_ID = 37, 38, 39, 40, 41
POSS_DUP_FLAG, PRICE, REF_SEQ_NUM, SENDER_COMP_ID, SENDING_TIME = 43, 44, 45, 49, 52
SIDE, SYMBOL, TARGET_COMP_ID, TEXT, TIME_IN_FORCE, TRANSACT_TIME = 54, 55, 56, 58, 59, 60
POSS_RESEND, ENCRYPT_METHOD, CXL_REJ_REASON, ORD_REJ_REASON, HEART_BT_INT = 97, 98, 102, 103, 108
TEST_REQ_ID, ORIG_SENDING_TIME, GAP_FILL_FLAG, RESET_SEQ_NUM_FLAG = 112, 122, 123, 141
EXEC_TYPE, LEAVES_QTY, REF_TAG_ID, REF_MSG_TYPE, SESSION_REJECT_REASON = 150, 151, 371, 372, 373
BUSINESS_REJECT_REF_ID, BUSINESS_REJECT_REASON, CXL_REJ_RESPONSE_TO = 379, 380, 434
RAW_DATA, USERNAME, PASSWORD, NEW_PASSWORD, DEFAULT_APPL_VER_ID = 96, 553, 554, 925, 1137

TAGS_MAX: Final = 1_024  # tags from here on are counted as unknown, whatever they are

# The tags that `parse` records; every other tag is counted and skipped (S37).
KNOWN: Final = (
    AVG_PX, BEGIN_SEQ_NO, BEGIN_STRING, BODY_LENGTH, CHECK_SUM, CL_ORD_ID, CUM_QTY, END_SEQ_NO, EXEC_ID,
    EXEC_REF_ID, LAST_PX, LAST_QTY, MSG_SEQ_NUM, MSG_TYPE, NEW_SEQ_NO, ORDER_ID, ORDER_QTY, ORD_STATUS,
    ORD_TYPE, ORIG_CL_ORD_ID, POSS_DUP_FLAG, PRICE, REF_SEQ_NUM, SENDER_COMP_ID, SENDING_TIME, SIDE, SYMBOL,
    TARGET_COMP_ID, TEXT, TIME_IN_FORCE, TRANSACT_TIME, POSS_RESEND, ENCRYPT_METHOD, CXL_REJ_REASON,
    ORD_REJ_REASON, HEART_BT_INT, TEST_REQ_ID, ORIG_SENDING_TIME, GAP_FILL_FLAG, RESET_SEQ_NUM_FLAG,
    EXEC_TYPE, LEAVES_QTY, REF_TAG_ID, REF_MSG_TYPE, SESSION_REJECT_REASON, BUSINESS_REJECT_REF_ID,
    BUSINESS_REJECT_REASON, CXL_REJ_RESPONSE_TO,
)  # fmt: skip

SOH: Final = 1

# Statuses.  OK is positive, and so is every size; whatever is below zero is a refusal.
OK: Final = 1
BAD_SIZE, BAD_BEGIN_STRING, BAD_BODY_LENGTH, BAD_TRAILER, BAD_CHECK_SUM = -1, -2, -3, -4, -5
BAD_MSG_TYPE, BAD_TAG, DUPLICATE_TAG = -6, -7, -8
MISSING, BAD_NUMBER, OUT_OF_RANGE, TOO_FINE, BAD_TIME = -9, -10, -11, -12, -13
DOES_NOT_FIT, NO_SYMBOL, BAD_FORM = -14, -15, -16
STATUS_NAMES: Final = (
    "", "bad_size", "bad_begin_string", "bad_body_length", "bad_trailer", "bad_check_sum", "bad_msg_type",
    "bad_tag", "duplicate_tag", "missing", "bad_number", "out_of_range", "too_fine", "bad_time",
    "does_not_fit", "no_symbol", "bad_form",
)  # fmt: skip  # by minus the status

# Widths of the templates; a value beyond them is refused, never cut.
BODY_LENGTH_MAX: Final = 10**4 - 1
MSG_SEQ_NUM_MAX: Final = 10**9 - 1
QTY_MAX: Final = 10**7 - 1
PX_MAX: Final = 10**10 - 1  # six digits, a dot and four: 999999.9999
ID_SIZE: Final = 16
