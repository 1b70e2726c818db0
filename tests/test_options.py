"""Options of the command line: values that click would let through."""

import click
import pytest

from pipeline.options import explain
from pipeline.run import main


@pytest.mark.parametrize("value", ["nan", "inf", "-0.1", "2"])
def test_a_fraction_lies_between_0_and_1(value: str) -> None:
    with pytest.raises(click.BadParameter) as refused:
        main.main(["status", "--out", "out", "--max-failed-fraction", value], standalone_mode=False)
    message = explain(refused.value, main)
    assert message.startswith(f"Invalid value for '--max-failed-fraction': {value.removesuffix('.0')}")
    assert "is not in the range 0<=x<=1; see " in message
