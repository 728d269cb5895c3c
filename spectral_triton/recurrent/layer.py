"""What layers that run whole sequences share: stacking, access to the transitions, conversion."""

from __future__ import annotations

import warnings
from typing import Any, ClassVar

import torch
from torch import Tensor

from spectral_triton.recurrent.module import RecurrentModule
from spectral_triton.runtime.validation import check_flag, check_integer, check_number
from spectral_triton.svd.operator import HouseholderSVD
from spectral_triton.svd.weight import SVDWeight


class RecurrentLayer(RecurrentModule):
    """Layers and directions of cells, with the arguments, shapes and names of torch.nn.RNNBase."""

    _options: ClassVar[tuple[str, ...]] = (
        "num_layers",
        "bias",
        "batch_first",
        "dropout",
        "bidirectional",
    )

    proj_size: int = 0

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        bias: bool,
        batch_first: bool,
        dropout: float,
        bidirectional: bool,
        init: str,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, init)
        check_integer("num_layers", num_layers, 1)
        check_number("dropout", dropout)
        check_flag("batch_first", batch_first)
        check_flag("bidirectional", bidirectional)
        if not 0 <= dropout <= 1:
            raise ValueError(f"dropout must be a probability between 0 and 1, got {dropout}")
        if dropout and num_layers == 1:
            warnings.warn(
                f"dropout={dropout} has no effect with num_layers=1: outputs of the last layer are "
                "not dropped, as with torch.nn.RNN",
                stacklevel=3,
            )
        self.num_layers, self.batch_first = num_layers, bool(batch_first)
        self.dropout, self.bidirectional = float(dropout), bool(bidirectional)

    def _features(self, index: int) -> int:
        first = index < self.num_directions
        return self.input_size if first else self._state_size * self.num_directions

    @property
    def num_directions(self) -> int:
        """2 if bidirectional, else 1."""
        return 2 if self.bidirectional else 1

    def _suffixes(self) -> list[str]:
        directions = ("", "_reverse")[: self.num_directions]
        return [f"_l{layer}{way}" for layer in range(self.num_layers) for way in directions]

    def svd_weight(self, layer: int = 0, reverse: bool = False) -> SVDWeight:
        """The module that holds the transition of one layer and direction."""
        check_integer("layer", layer, 0, self.num_layers - 1)
        if reverse and not self.bidirectional:
            raise ValueError(f"reverse=True needs a bidirectional {type(self).__name__}")
        return self._svd_weight(f"_l{layer}{'_reverse' if reverse else ''}")

    @property
    def factors(self) -> tuple[HouseholderSVD, ...]:
        """The transition of each layer and direction as an operator, in the order of ``h_n``.

        That of a gated layer is the stack of its matrices, with the gates in the order of torch.
        """
        return tuple(self._svd_weight(suffix).factors for suffix in self._suffixes())

    @property
    def singular_values(self) -> Tensor:
        """Those of all transitions, unsorted, differentiable, float32 at least.

        Shape (num_layers * directions, n) in the order of ``h_n``, of gated layers
        (num_layers * directions, gates, n) with the gates in the order of torch. Those of one:
        ``rnn.svd_weight(layer, reverse).singular_values``.
        """
        return torch.stack([self._svd_weight(s).singular_values for s in self._suffixes()])

    @property
    def mode(self) -> str:
        """The kind of cell as ``torch.nn.RNNBase`` names it: "LSTM", "GRU", "RNN_TANH"."""
        kind = self._plain_type.__name__
        nonlinearity = getattr(self, "nonlinearity", None)
        return kind if nonlinearity is None else f"{kind}_{nonlinearity.upper()}"

    @property
    def all_weights(self) -> list[list[Tensor]]:
        """The tensors of each layer and direction, in the order of ``torch.nn.RNNBase``.

        ``weight_hh`` among them is formed from its factors: writing to it changes nothing, so that
        code which walks through them to initialise leaves the transitions as ``init`` drew them.
        """
        biases = ("bias_ih", "bias_hh") if self.bias else ()
        names = ("weight_ih", "weight_hh", *biases, *(("weight_hr",) if self.proj_size else ()))
        return [[getattr(self, name + suffix) for name in names] for suffix in self._suffixes()]

    def flatten_parameters(self) -> None:
        """Does nothing, as weights are formed for each call: for code that calls it on nn.LSTM."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("weight_hh_l") and f"svd_hh{name[9:]}" in self._modules:
            suffix = name[9:]
            return self._handed_out(self._dense(suffix), self._svd_weight(suffix), name)
        return super().__getattr__(name)

    def _assignable(self, name: str) -> SVDWeight | None:
        if not name.startswith("weight_hh_l"):
            if name in ("weight", "weight_hh"):
                raise AttributeError(
                    f"{type(self).__name__} has no {name}: weight_hh_l0 is the transition of the "
                    "first layer, as torch names it"
                )
            return None
        if f"svd_hh{name[9:]}" not in self._modules:
            raise AttributeError(f"{type(self).__name__} has no {name}")
        return self._svd_weight(name[9:])

    def _options_to_show(self) -> list[str]:
        defaults = {
            "num_layers": 1,
            "bias": True,
            "batch_first": False,
            "dropout": 0.0,
            "bidirectional": False,
        }
        return [
            f"{name}={getattr(self, name)}"
            for name, default in defaults.items()
            if getattr(self, name) != default
        ]

    def extra_repr(self) -> str:
        return ", ".join((f"{self.input_size}, {self.hidden_size}", *self._options_to_show()))
