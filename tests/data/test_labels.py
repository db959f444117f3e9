"""Labels of odd types: taken as what they say, or refused in plain words."""

import datetime
import decimal
import enum
from typing import Any

import numpy as np
import pandas as pd
import pytest

from skgpt.data.targets import check_classes, encode_target
from skgpt.exceptions import InvalidTextError


class Team(str, enum.Enum):  # noqa: UP042, not a StrEnum: str() says something else
    UK = "sport-uk"
    US = "sport-us"
    MONEY = "money"


def test_encode_target__members_of_an_enum_of_str__are_their_texts() -> None:
    target = encode_target([Team.UK, Team.US, Team.MONEY], 3, name="It")
    assert target.classes.tolist() == ["money", "sport-uk", "sport-us"]
    assert target.labels.tolist() == ["sport-uk", "sport-us", "money"]


@pytest.mark.parametrize(
    "labels",
    [
        [datetime.date(2026, 1, 1), datetime.date(2026, 1, 2)],
        [decimal.Decimal("1.5"), decimal.Decimal("2")],
        [b"a", b"b"],
        [{"a"}, {"b"}],
        [True, 2],
    ],
)
def test_labels__of_a_type_that_is_none_of_scikit_learns__are_refused(labels: Any) -> None:
    for y in (labels, np.array(labels, dtype=object), pd.Series(labels, dtype=object)):
        for check in (encode_target, lambda y, n, name: check_classes(y, name=name)):
            with pytest.raises(InvalidTextError, match=r"must be (str, int or bool|of one type)"):
                check(y, 2, name="It")
