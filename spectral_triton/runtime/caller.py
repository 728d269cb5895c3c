"""Where a warning belongs: the user's line, however deep in the package it is found."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

PACKAGE = Path(__file__).parent.parent
# What decorates with torch.no_grad, or parametrizes, has torch's frames in between.
PASSED = tuple(f"{folder}{os.sep}" for folder in (Path(torch.__file__).parent, PACKAGE))


def stacklevel_of_caller() -> int:
    """``stacklevel`` of ``warnings.warn`` for the innermost frame outside of the package and torch.

    Example:
        >>> stacklevel_of_caller()
        1
    """
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_code.co_filename.startswith(PASSED):
        frame, level = frame.f_back, level + 1
    return level
