"""Wrong numbers for `bench wire` are usage errors, before anything is started."""

from __future__ import annotations

import pytest

from daemon.main import main


@pytest.mark.parametrize(
    "options",
    [
        ("--seconds", "-1"), ("--seconds", "0"), ("--seconds", "nan"), ("--seconds", "inf"), ("--rate", "0"),
        ("--rate", "1.5"), ("--admin-rps", "0"), ("--admin-rps", "-5"),
    ],
)  # fmt: skip
def test_a_wrong_number_is_a_usage_error(options, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["bench", "wire", *options])
    assert ended.value.code == 2
    assert options[0] in capsys.readouterr().err.splitlines()[-1]
