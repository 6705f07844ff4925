"""One base for every error, and messages that lead on."""

import pytest

import edgeq
from edgeq.errors import suggestion


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [
        (edgeq.SpecError, ValueError),
        (edgeq.TraceError, RuntimeError),
        (edgeq.CalibrationError, RuntimeError),
        (edgeq.ExportError, RuntimeError),
    ],
)
def test_an_error_is_edgeqs_and_of_the_kind_that_python_programs_catch(kind, builtin):
    assert issubclass(kind, edgeq.EdgeqError)
    assert issubclass(kind, builtin)


@pytest.mark.parametrize(
    ("given", "tail"),
    [
        ("qnpack", "Did you mean 'qnnpack'? (Known: qnnpack, x86.)"),
        ("X86", "Did you mean 'x86'? (Known: qnnpack, x86.)"),
        ("snpe", "Known: qnnpack, x86."),
        (5, "Known: qnnpack, x86."),
    ],
)
def test_the_nearest_name_is_suggested_if_one_is_near(given, tail):
    assert suggestion(given, ["x86", "qnnpack"]) == tail


def test_the_suggestion_keeps_the_spelling_of_the_choice():
    assert suggestion("wc8_at8", ["WC8_AT8", "DEFAULT"]).startswith("Did you mean 'WC8_AT8'?")
