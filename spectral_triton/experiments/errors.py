"""What can go wrong in an experiment, each with the exit status the command line gives it."""


class ExperimentError(Exception):
    """A failure whose message is meant for the person who typed the command."""

    exit_code = 1


class UsageError(ExperimentError):
    """An option that makes no sense, or a folder that must not be written to."""

    exit_code = 2


class FolderInUse(ExperimentError):
    """A folder that another process is writing to."""


class DataError(ExperimentError):
    """A data file that is missing or damaged."""


class TrainingStopped(ExperimentError):
    """A loss or gradient that is no longer a finite number.

    ``reason`` says what happened, for whoever reads the results; ``advice`` what to do here.
    """

    def __init__(self, reason: str, advice: str = "") -> None:
        super().__init__(f"{reason}. {advice}" if advice else reason)
        self.reason = reason


def option(name: str) -> str:
    """The option of the command line that sets a setting.

    Example:
        >>> option("hidden_size")
        '--hidden-size'
    """
    return "--" + name.replace("_", "-")


def failed_file(error: OSError) -> ExperimentError:
    """What the system said about a file, in one line."""
    name = f"{error.filename}: " if error.filename is not None else ""
    return ExperimentError(f"{name}{error.strerror or error}")


class Interrupted(ExperimentError):
    """The person asked the run to stop; it was saved."""

    exit_code = 130
