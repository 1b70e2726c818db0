"""Options of the command line: values that click would let through."""

import click
import pytest

from model import predict
from pipeline.options import explain
from pipeline.run import main


@pytest.mark.parametrize("value", ["nan", "inf", "-0.1", "2"])
def test_a_fraction_lies_between_0_and_1(value: str) -> None:
    with pytest.raises(click.BadParameter) as refused:
        main.main(["status", "--out", "out", "--max-failed-fraction", value], standalone_mode=False)
    message = explain(refused.value, main)
    assert message.startswith(f"Invalid value for '--max-failed-fraction': {value.removesuffix('.0')}")
    assert "is not in the range 0<=x<=1; see " in message


@pytest.mark.parametrize("option", ["--config", "--cluster-file"])
def test_an_empty_name_of_a_file_is_refused(option: str) -> None:
    with pytest.raises(click.BadParameter) as refused:
        main.main(["scan", "--out", "out", option, ""], standalone_mode=False)
    assert explain(refused.value, main).startswith(f"Invalid value for '{option}': it is empty; name a file, or leave")


@pytest.mark.parametrize(("arguments", "name"), [(["", "0.wav"], "MODEL"), (["model", "0.wav", " "], "AUDIO...")])
def test_an_empty_name_is_no_model_and_no_recording(arguments: list[str], name: str) -> None:
    with pytest.raises(click.BadParameter) as refused:
        predict.main.main(arguments, standalone_mode=False)
    assert refused.value.format_message() == f"Invalid value for '{name}': it is empty"
