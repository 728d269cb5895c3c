"""One factory for every recurrent network that is compared: encoder, head and what goes between."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from spectral_triton.experiments.errors import UsageError
from spectral_triton.experiments.tasks.networks import (
    SPECTRAL_GATES,
    SPECTRAL_MODELS,
    WITH_FACTORS,
    WITH_MARGIN,
)
from spectral_triton.experiments.tasks.settings import Settings
from spectral_triton.recurrence.nonlinearity import NONLINEARITIES
from spectral_triton.recurrent.gru import SpectralGRU
from spectral_triton.recurrent.lstm import SpectralLSTM
from spectral_triton.recurrent.rnn import SpectralRNN
from spectral_triton.spectra.spectrum import FixedSpectrum, SigmoidSpectrum, Spectrum

if TYPE_CHECKING:
    from spectral_triton.experiments.tasks.task import Task

GATED_LAYERS: Mapping[str, type[nn.Module]] = {
    "lstm": nn.LSTM,
    "gru": nn.GRU,
    "spectral-lstm": SpectralLSTM,
    "spectral-gru": SpectralGRU,
}
INITIALIZERS = ("identity", "haar", "henaff", "cayley")
IRNN_INPUT_SCALE = 1e-3

State = Tensor | tuple[Tensor, Tensor] | None


class SequenceModel(nn.Module):
    """A recurrent encoder with a linear head after its last step, or after every step.

    One that runs both ways has its head on the last state of each direction.

    Inputs (T, B, features) floating, or (T, B) tokens where there is an embedding; outputs
    (B, outputs) or (T, B, outputs), and the state to go on from.
    """

    def __init__(
        self,
        encoder: nn.Module,
        head: nn.Linear,
        *,
        embedding: nn.Embedding | None = None,
        answers_every_step: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
    ) -> None:
        super().__init__()
        self.embedding = embedding
        self.encoder = encoder
        self.head = head
        self.dropout = nn.Dropout(dropout)
        self.answers_every_step = answers_every_step
        self.bidirectional = bidirectional

    def forward(self, inputs: Tensor, state: State = None) -> tuple[Tensor, State]:
        hidden, state = self.encoder(self.embed(inputs), state)
        if self.answers_every_step:
            return self.answer(hidden), state
        # Not hidden[-1], whose gradient is a tensor of zeros as long as the sequence.
        last = state[0] if isinstance(state, tuple) else state
        # The backward direction has read the first step last.
        end = torch.cat((last[-2], last[-1]), -1) if self.bidirectional else last[-1]
        return self.answer(end), state

    def embed(self, inputs: Tensor) -> Tensor:
        """What the encoder reads."""
        return inputs if self.embedding is None else self.dropout(self.embedding(inputs))

    def answer(self, hidden: Tensor) -> Tensor:
        """The head's outputs for hidden states of the last layer."""
        return self.head(self.dropout(hidden))

    @torch.no_grad()
    def singular_values(self) -> Tensor | None:
        """Those of the first layer's transition, or bounded gates, falling; None of free gates.

        Those of several gates stand one gate after another.
        Of a network that runs both ways, those of its forward direction.
        """
        if isinstance(own := getattr(self.encoder, "singular_values", None), Tensor):
            values = own[0].sort(-1, descending=True).values.flatten()
        elif isinstance(self.encoder, nn.RNN):
            values = torch.linalg.svdvals(self.encoder.weight_hh_l0)
        else:
            return None
        return values.detach()


def check_settings(name: str, settings: Settings) -> None:
    """Refuses settings that ``name`` cannot be built with.

    Raises:
        UsageError: names the setting and its value.
    """
    if name in WITH_MARGIN and settings.margin == 0:
        advice = "use --model orthogonal" if name == "spectral" else f"{name} needs a positive one"
        raise UsageError(f"--margin 0 leaves nothing to learn: {advice}")
    if name in WITH_FACTORS and settings.init not in INITIALIZERS:
        raise UsageError(f"--init must be one of {', '.join(INITIALIZERS)}, not {settings.init!r}")
    known = {"rnn": ("tanh", "relu"), "spectral": NONLINEARITIES, "orthogonal": NONLINEARITIES}
    if name in known and settings.nonlinearity not in known[name]:
        raise UsageError(
            f"--nonlinearity of {name} must be one of {', '.join(known[name])}, "
            f"not {settings.nonlinearity!r}"
        )


def check_directions(settings: Settings, task: Task | type[Task]) -> None:
    """Refuses to read both ways what is answered at every step, where the answers lie ahead.

    Raises:
        UsageError: if so.
    """
    if settings.bidirectional and task.answers_every_step:
        raise UsageError("--bidirectional would read the answers of this task ahead of their steps")


def build_model(
    name: str, settings: Settings, task: Task, *, device: torch.device, dtype: torch.dtype
) -> SequenceModel:
    """The model ``name`` with the sizes the task asks for, initialised from torch's generator.

    ``spectral`` is SpectralRNN with singular values within ``margin`` of 1, ``orthogonal`` the
    same with all of them fixed to 1, ``rnn`` torch's with its own initialisation, ``irnn`` the
    ReLU network that begins at the identity, ``lstm`` and ``gru`` torch's with an open forget or
    closed update gate, ``spectral-lstm`` and ``spectral-gru`` those with the singular values of
    every gate's recurrent matrix within ``margin`` of 1.
    """
    factory: dict[str, Any] = {"device": device, "dtype": dtype}
    input_size, embedding = task.input_size, None
    if task.reads_tokens:
        input_size = settings.hidden_size
        embedding = nn.Embedding(task.input_size, input_size, **factory)
        nn.init.uniform_(embedding.weight, -0.1, 0.1)
    check_settings(name, settings)
    check_directions(settings, task)
    encoder = _build_encoder(name, settings, input_size, factory)
    width = settings.hidden_size * (2 if settings.bidirectional else 1)
    head = nn.Linear(width, task.output_size, **factory)
    return SequenceModel(
        encoder,
        head,
        embedding=embedding,
        answers_every_step=task.answers_every_step,
        dropout=settings.dropout,
        bidirectional=settings.bidirectional,
    )


def _build_encoder(name: str, settings: Settings, input_size: int, factory: dict) -> nn.Module:
    sizes = (input_size, settings.hidden_size)
    common = {
        "num_layers": settings.num_layers,
        "dropout": settings.dropout,
        "bidirectional": settings.bidirectional,
        **factory,
    }
    if settings.num_layers == 1:
        common["dropout"] = 0.0
    if name in SPECTRAL_MODELS:
        return _build_spectral(name, settings, sizes, common)
    if name == "rnn":
        return nn.RNN(*sizes, nonlinearity=settings.nonlinearity, **common)
    if name == "irnn":
        return _identity_start(nn.RNN(*sizes, nonlinearity="relu", **common))
    if name in SPECTRAL_GATES:
        common |= _factor_options(name, settings)
    encoder = GATED_LAYERS[name](*sizes, **common)
    _remember_first(encoder)
    return encoder


def _factor_options(name: str, settings: Settings) -> dict[str, Any]:
    spectrum: Spectrum
    if name == "orthogonal":
        spectrum = FixedSpectrum(1.0)
    else:
        spectrum = SigmoidSpectrum(center=1.0, margin=settings.margin)
    return {
        "num_reflectors": settings.num_reflectors,
        "spectrum": spectrum,
        "init": settings.init,
        "base": None if settings.rebase is None else "haar",
    }


def _build_spectral(
    name: str, settings: Settings, sizes: tuple[int, int], common: dict
) -> nn.Module:
    common |= _factor_options(name, settings)
    encoder = SpectralRNN(*sizes, nonlinearity=settings.nonlinearity, **common)
    for parameter_name, parameter in encoder.named_parameters():
        # It stands beside bias_ih in a sum: training both doubles the rate of a bias that the
        # state gathers up over all steps, and learning the adding problem takes twice as long.
        if parameter_name.startswith("bias_hh"):
            parameter.requires_grad_(False)
    return encoder


@torch.no_grad()
def _identity_start(encoder: nn.RNN) -> nn.RNN:
    for name, parameter in encoder.named_parameters():
        if name.startswith("weight_hh"):
            nn.init.eye_(parameter)
        elif name.startswith("weight_ih"):
            nn.init.normal_(parameter, std=IRNN_INPUT_SCALE)
        else:
            nn.init.zeros_(parameter)
    return encoder


@torch.no_grad()
def _remember_first(encoder: nn.Module) -> None:
    """Bias 1 on the gate that keeps the state: the second of four (LSTM), or of three (GRU)."""
    size: Any = encoder.hidden_size
    for name, parameter in encoder.named_parameters():
        if name.startswith("bias_ih"):
            parameter[size : 2 * size] = 1.0
        elif name.startswith("bias_hh"):
            parameter[size : 2 * size] = 0.0


def count_parameters(model: nn.Module) -> int:
    """Trainable numbers of the model, with those of reflectors before the diagonal, never used."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def detach_state(state: State) -> State:
    """The same state, through which no gradient flows."""
    if isinstance(state, tuple):
        return state[0].detach(), state[1].detach()
    return None if state is None else state.detach()


def as_tensors(state: State) -> list[Tensor]:
    """The tensors of a state, none where there is none."""
    return [] if state is None else list(state) if isinstance(state, tuple) else [state]


def lipschitz_bound(name: str, settings: Settings) -> float | None:
    """What one step can stretch a gradient by at most, for one layer of a spectral model, one way.

    None for modrelu, whose slope has no bound where its bias is positive.
    """
    if settings.num_layers != 1 or settings.bidirectional or settings.nonlinearity == "modrelu":
        return None
    return {"spectral": 1.0 + settings.margin, "orthogonal": 1.0}.get(name)
