"""Where a pickle of before finds its classes: the modules they stood in, by their former names.

Only those whose classes a saved model names. State dicts name no module and need none of this.
"""

from __future__ import annotations

import sys

from spectral_triton.layers import conv, linear, mlp, residual
from spectral_triton.recurrent import gru, gru_cell, lstm, lstm_cell, rnn, rnn_cell
from spectral_triton.spectra import spectrum
from spectral_triton.svd import weight

_MOVED = {
    "conv": conv,
    "gru": gru,
    "gru_cell": gru_cell,
    "linear": linear,
    "lstm": lstm,
    "lstm_cell": lstm_cell,
    "mlp": mlp,
    "residual": residual,
    "rnn": rnn,
    "rnn_cell": rnn_cell,
    "spectrum": spectrum,
    "weight": weight,
}

sys.modules.update({f"spectral_triton.{name}": module for name, module in _MOVED.items()})
