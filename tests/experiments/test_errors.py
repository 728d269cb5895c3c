import pytest

from spectral_triton.experiments import errors


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.UsageError, 2),
        (errors.DataError, 1),
        (errors.FolderInUse, 1),
        (errors.TrainingStopped, 1),
        (errors.Interrupted, 130),
    ],
)
def test_exit_status(error, status):
    assert issubclass(error, errors.ExperimentError)
    assert error("x").exit_code == status
