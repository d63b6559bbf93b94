import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shared_core.run.result import check_result

SCHEMA = {
    "type": "object",
    "required": ["method", "seeds", "accuracy_mean"],
    "additionalProperties": False,
    "properties": {
        "method": {"enum": ["corsd", "ce"]},
        "seeds": {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1},
        "accuracy_mean": {"type": ["number", "null"], "minimum": 0, "maximum": 1},
        "controls": {"type": "object", "additionalProperties": {"type": "number"}},
    },
}
GOOD = {"method": "ce", "seeds": [0, 1], "accuracy_mean": 0.5, "controls": {"rkd": 0.25}}


def test_a_good_one_passes():
    check_result(GOOD, SCHEMA)
    check_result({**GOOD, "accuracy_mean": None}, SCHEMA)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "x"}, r"result.method is 'x', not one of \['corsd', 'ce'\]"),
        ({"seeds": []}, "result.seeds has 0 entries, fewer than 1"),
        ({"seeds": [0, -1]}, r"result.seeds\[1\] is -1, below 0"),
        ({"seeds": [True]}, r"result.seeds\[0\] is True, not of type integer"),
        ({"accuracy_mean": 1.5}, "result.accuracy_mean is 1.5, above 1"),
        ({"accuracy_mean": "high"}, "is 'high', not of type number or null"),
        ({"controls": {"rkd": "?"}}, r"result.controls.rkd is '\?', not of type number"),
        ({"extra": 1}, "result has extra, which is not in the schema"),
    ],
)
def test_faults_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        check_result({**GOOD, **change}, SCHEMA)


def test_what_is_missing_is_named():
    with pytest.raises(
        ValueError, match="result lacks method; result lacks seeds; result lacks accuracy_mean"
    ):
        check_result({}, SCHEMA)


def test_an_unknown_keyword_is_not_passed_over():
    with pytest.raises(NotImplementedError, match="uses oneOf, which check_result does not know"):
        check_result({}, {"oneOf": []})


values = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 3) | st.floats(-1, 2) | st.sampled_from(["ce", "x"]),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["a", "b"]), inner, max_size=2)
    ),
    max_leaves=4,
)


@given(st.dictionaries(st.sampled_from([*SCHEMA["properties"], "other"]), values, max_size=5))
@settings(max_examples=200, deadline=None)
def test_agrees_with_the_jsonschema_library(change):
    result = {**GOOD, **change}
    fine = jsonschema.Draft202012Validator(SCHEMA).is_valid(result)
    if fine:
        check_result(result, SCHEMA)
    else:
        with pytest.raises(ValueError, match="result"):
            check_result(result, SCHEMA)
