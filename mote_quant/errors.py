"""Every error the package raises on purpose, in one tree.

Two branches answer the one question a caller has: is the request wrong (`RequestError`, exit code 2), or did a sound
request fail on the way and can be resumed (`RunError`, exit code 3)? `TrainingError` is both: only the run shows that
another recipe is needed.
"""

from __future__ import annotations

from collections.abc import Sequence


class MoteError(Exception):
    """The root. Its message says what is wrong and what to do about it.

    `advice` is more of that for those who call us from Python; `message` is the text without it. `resumable`: the same
    command goes on where it stopped.
    """

    exit_code = 3
    resumable = False
    advice = ""

    @property
    def message(self) -> str:
        """What went wrong, without `advice`."""
        return super().__str__()

    def __str__(self) -> str:
        return f"{self.message}; {self.advice}" if self.advice else self.message


class RequestError(MoteError):
    """The request itself cannot be met: recipe, arguments, model or data."""

    exit_code = 2


class RunError(MoteError):
    """A sound request failed while running; nothing finished is lost, and the same command resumes."""

    resumable = True


class RecipeError(RequestError):
    """One or more mistakes in a recipe; `problems` holds them one by one, each with its place."""

    def __init__(self, problems: Sequence[str] | str) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class TargetError(RequestError):
    """A target matches nothing, or something it may not touch."""


class FormatError(RequestError):
    """A format that a tensor cannot take, or packed data that is not what its format says."""


class KernelError(RequestError):
    """Kernels that this machine or build does not have, or that cannot run."""


class ModelError(RequestError):
    """A model that cannot be worked on; the message names the missing trait."""


class UnsupportedModelError(ModelError):
    """No feed-forward block was recognised, or one has a shape the up-cycler does not know."""


class AlreadyMoEError(ModelError):
    """The model already has experts."""


class BadWeightsError(ModelError):
    """Weights that are NaN or infinite."""


class DataError(RequestError):
    """A data source that is missing, empty, malformed or does not fit the model."""


class FingerprintError(RequestError):
    """A run folder that belongs to another recipe, model or data set; the message says what differs."""


class MissingExtraError(RequestError):
    """An optional dependency is needed; the message names the extra."""


class TrainingError(RunError):
    """Training produced a loss that is not finite, and would again: another recipe is needed, hence exit code 2."""

    exit_code = 2
    resumable = False


class SpikeError(TrainingError):
    """The loss of step `step` (from 0) is not finite, or far above `usual`: a guard goes back and tries again."""

    def __init__(self, message: str, step: int, loss: float, usual: float | None) -> None:
        super().__init__(message)
        self.step, self.loss, self.usual = step, loss, usual


class CalibrationError(RunError):
    """Calibration could not produce what a method needs."""


class CellDiedError(RunError):
    """The process that worked on a cell of a sweep is gone; the message says what to do."""


class CellFailedError(RunError):
    """A cell of a sweep met an error that is not ours; its traceback lies in the cell's folder."""


class SweepError(RunError):
    """Parts of a sweep have no result; all others are written, and the message lists what is missing and why."""


class SaveError(RunError):
    """Writing failed (disk full, read-only folder); whatever was there before is still whole."""


class ArtifactError(RequestError):
    """A file of a saved model or run is missing, truncated or altered; the message names it."""


def first_line(error: BaseException) -> str:
    """What an error that is not ours says, in one line."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
