import pytest

from spectral_triton.experiments.arguments import listed, reflector_counts, whole_numbers
from spectral_triton.experiments.errors import UsageError


def test_names_by_repetition_and_by_commas():
    assert listed(["a, b", "c"]) == ["a", "b", "c"]
    with pytest.raises(UsageError, match="'a' is given twice"):
        listed(["a,b", "a"])


def test_whole_numbers():
    assert whole_numbers(["0,12"]) == [0, 12]
    for bad in ("-1", "1.5", "x", str(2**63)):
        with pytest.raises(UsageError, match=f"--seeds takes .* not '{bad}'"):
            whole_numbers([bad], "--seeds")


@pytest.mark.parametrize(("text", "counts"), [("full", None), ("4", (4, 4)), ("1,2", (1, 2))])
def test_reflector_counts(text, counts):
    assert reflector_counts(text) == counts


@pytest.mark.parametrize("text", ["", "a", "1,2,3", "-1"])
def test_bad_reflector_counts(text):
    with pytest.raises(UsageError, match="--num-reflectors takes K, LEFT,RIGHT or full"):
        reflector_counts(text)
