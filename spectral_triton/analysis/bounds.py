"""Bounds that theory gives for gradients and for the error on new data, from a real network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from spectral_triton.analysis.gradient_flow import State, evaluation_mode, state_parts
from spectral_triton.recurrent.rnn import SpectralRNN
from spectral_triton.runtime.validation import check_floating, check_integer, check_number
from spectral_triton.spectra.spectrum import Spectrum


def step_factor(rnn: SpectralRNN) -> float:
    r"""What one step can stretch a gradient by at most, whatever is learned.

    .. math:: \Bigl\|\frac{\partial h_{t+1}}{\partial h_t}\Bigr\|_2 =
        \|\mathrm{diag}(\varphi')\,W\|_2 \le \mathrm{Lip}(\varphi)\,\max_i |\sigma_i|
        \le \sigma^* + r

    Proved: it follows from the bounds of the spectrum, not from the present weights, and so holds
    during all of training. It says nothing from below: where φ' is 0 nothing passes.

    Args:
        rnn: One layer, one direction; not with modrelu, whose slope has no bound where its bias is
            positive.

    Returns:
        The largest absolute value within the bounds of the spectrum, times the Lipschitz constant
        of the nonlinearity; infinite where the spectrum has no upper bound.

    Raises:
        TypeError: if ``rnn`` is no SpectralRNN.
        ValueError: if it has several layers or directions, or modrelu.

    Example:
        >>> from spectral_triton import SpectralRNN
        >>> step_factor(SpectralRNN(1, 8, nonlinearity="relu"))
        1.01

    References:
        Zhang, Lei, Dhillon. Stabilizing gradients for deep neural networks via efficient SVD
        parameterization. ICML 2018. https://arxiv.org/abs/1803.09327
    """
    if not isinstance(rnn, SpectralRNN):
        raise TypeError(f"rnn must be a SpectralRNN, got {type(rnn).__name__}")
    if rnn.num_layers != 1 or rnn.bidirectional:
        raise ValueError("rnn must have one layer and one direction")
    spectrum = rnn.svd_weight().spectrum
    assert isinstance(spectrum, Spectrum)  # a stack of them belongs to gated layers
    return _slope(rnn) * max(abs(bound) for bound in spectrum.bounds)


def _slope(rnn: SpectralRNN | nn.RNN) -> float:
    """The Lipschitz constant of φ."""
    if rnn.nonlinearity == "modrelu":
        raise ValueError("modrelu with a positive bias has no Lipschitz constant")
    if isinstance(rnn, SpectralRNN) and rnn.nonlinearity == "leaky_relu":
        return max(1.0, abs(rnn.negative_slope))
    return 1.0


def gradient_bound(direct: Sequence[float], factor: float) -> list[float]:
    r"""The largest norms of ∂L/∂h_t possible: :math:`\sum_{s \ge t} \rho^{s-t} \lVert d_s \rVert`.

    With a loss of the last step alone it is :math:`\rho^{T-t} \lVert\partial L/\partial
    h_T\rVert`: for ρ = 1 + r and r about 1/T no more than e times the gradient of the last step.

    Args:
        direct: :math:`\lVert d_s \rVert`, as ``gradient_norms`` returns them.
        factor: ρ, such as :func:`step_factor`.

    Example:
        >>> gradient_bound([0.0, 0.0, 3.0], 2.0)
        [12.0, 6.0, 3.0]
    """
    bounds, carried = [], 0.0
    for norm in reversed(direct):
        # Nothing stays nothing, whatever the factor.
        carried = norm + (factor * carried if carried else 0.0)
        bounds.append(carried)
    return bounds[::-1]


def jacobian_norms(encoder: nn.Module, inputs: Tensor) -> Tensor:
    r"""Measured spectral norms :math:`\lVert\partial h_T / \partial h_t\rVert_2`, t = 1 .. T.

    .. math:: \frac{\partial h_T}{\partial h_t} = J_T J_{T-1} \cdots J_{t+1}, \qquad
        J_s = \frac{\partial h_s}{\partial h_{s-1}}

    Measured, for one sequence: with :func:`step_factor` ρ the entry of t is at most
    :math:`\rho^{T-t}`. For a state of N numbers (all layers; of an LSTM h and c) it costs T steps
    with a batch of N, T decompositions N × N, and memory for T N² numbers.

    Args:
        encoder: As for ``gradient_norms``.
        inputs: One sequence, shape ``(T, features)``.

    Returns:
        Shape ``(T,)``, the last entry 1, in the dtype of the inputs.

    Raises:
        TypeError: if ``inputs`` is not a real floating-point tensor.
        ValueError: if ``inputs`` is not one sequence, or ``encoder`` runs both ways.

    Example:
        >>> norms = jacobian_norms(torch.nn.LSTM(2, 4), torch.randn(6, 2))
        >>> norms.shape, float(norms[-1])
        (torch.Size([6]), 1.0)
    """
    check_floating("inputs", inputs)
    if inputs.dim() != 2 or len(inputs) == 0:
        raise ValueError(f"inputs must be one sequence (T, features), got {tuple(inputs.shape)}")
    if getattr(encoder, "bidirectional", False):
        raise ValueError("encoder must run in one direction: of two there is no step before t")
    with evaluation_mode(encoder), torch.backends.cudnn.flags(enabled=False):
        jacobians, state = [], None
        for t, step in enumerate(inputs):
            if t > 0:
                jacobians.append(_jacobian(encoder, step, state))
            with torch.no_grad():
                _, state = encoder(step[None, None], state)
    size = sum(part.numel() for part in state_parts(state))
    product = torch.eye(size, dtype=inputs.dtype, device=inputs.device)
    norms = [torch.ones((), dtype=inputs.dtype, device=inputs.device)]
    for jacobian in reversed(jacobians):
        product = product @ jacobian
        norms.append(torch.linalg.matrix_norm(product, 2))
    return torch.stack(norms[::-1])


def _jacobian(encoder: nn.Module, step: Tensor, state: State) -> Tensor:
    parts = state_parts(state)
    size = sum(part.numel() for part in parts)
    # One copy of the state for each row, so that one backward pass gives all rows.
    copies = [part.detach().repeat(1, size, 1).requires_grad_() for part in parts]
    with torch.enable_grad():
        entering = tuple(copies) if isinstance(state, tuple) else copies[0]
        batch = step.expand(1, size, -1)
        batch = batch.transpose(0, 1) if getattr(encoder, "batch_first", False) else batch
        _, left = encoder(batch, entering)
        rows = torch.autograd.grad(_flat(state_parts(left)).diagonal().sum(), copies)
    return _flat(rows)


def _flat(parts: Sequence[Tensor]) -> Tensor:
    """(layers, B, n) of every part as (B, all)."""
    return torch.cat([part.transpose(0, 1).flatten(1) for part in parts], 1)


@dataclass(frozen=True)
class GeneralizationOrder:
    r"""The terms of the order of a bound on the gap between training and test error.

    .. math:: \frac{\max(d, m, k)\, L^2\, \|U\|\,\|V\|\, \max(1, \|W\|^L)}{\alpha \sqrt N}

    Attributes:
        sizes: (d, m, k): features of an input, of the state, of an output.
        steps: L, the length of a sequence.
        input_norm: Spectral norm of the input weights.
        output_norm: Spectral norm of the head's weights.
        transition_norm: ‖W‖, the largest singular value of the transition, times the Lipschitz
            constant of φ where that is above 1.
        power: max(1, ‖W‖^L), infinite where that is no number of float64.
        margin: α, by which an answer must win to count as right in training.
        samples: N, sequences trained on.
    """

    sizes: tuple[int, int, int]
    steps: int
    input_norm: float
    output_norm: float
    transition_norm: float
    power: float
    margin: float
    samples: int

    @property
    def value(self) -> float:
        """The order, with 1 for its constant and without logarithms."""
        norms = self.input_norm * self.output_norm * self.power
        return max(self.sizes) * self.steps**2 * norms / (self.margin * self.samples**0.5)


def generalization_order(
    rnn: SpectralRNN | nn.RNN, head: nn.Linear, *, steps: int, samples: int, margin: float
) -> GeneralizationOrder:
    r"""The order of the margin bound of a recurrent classifier that answers after its last step.

    The theorem (proved in the paper, for one layer, bounded inputs and with high probability over
    the training data) has a constant, the inputs' norm and logarithms that this order leaves out:
    it ranks networks and shows which term would make them generalise badly; it is no bound itself,
    and usually far above 1, where a bound on an error rate is empty. What W in SVD form adds is
    that :math:`\max(1, \|W\|^L) \le (\sigma^* + r)^L` is known before training. That a small order
    comes with a small gap is an observation, never a consequence.

    Args:
        rnn: One layer, one direction.
        head: Linear map from the last state to k outputs.
        steps: L, at least 1.
        samples: N, at least 1.
        margin: α, positive.

    Raises:
        TypeError: if a module is of another type.
        ValueError: if a number is out of range, sizes do not fit, or the network has several
            layers or directions, or modrelu.

    Example:
        >>> from spectral_triton import SpectralRNN
        >>> order = generalization_order(
        ...     SpectralRNN(1, 8), nn.Linear(8, 2), steps=100, samples=10_000, margin=0.5
        ... )
        >>> order.sizes, order.power <= 1.01**100
        ((1, 8, 2), True)

    References:
        Zhang, Lei, Dhillon. Stabilizing gradients for deep neural networks via efficient SVD
        parameterization. ICML 2018. https://arxiv.org/abs/1803.09327
    """
    if not isinstance(rnn, SpectralRNN | nn.RNN):
        raise TypeError(f"rnn must be a SpectralRNN or nn.RNN, got {type(rnn).__name__}")
    if not isinstance(head, nn.Linear):
        raise TypeError(f"head must be a nn.Linear, got {type(head).__name__}")
    if rnn.num_layers != 1 or rnn.bidirectional:
        raise ValueError("rnn must have one layer and one direction")
    if head.in_features != rnn.hidden_size:
        raise ValueError(
            f"head must take the state of size {rnn.hidden_size}, takes {head.in_features}"
        )
    check_integer("steps", steps, 1)
    check_integer("samples", samples, 1)
    check_number("margin", margin)
    if margin <= 0:
        raise ValueError(f"margin must be positive, got {margin}")
    transition = _slope(rnn) * _norm(rnn.weight_hh_l0)
    try:
        power = max(1.0, transition**steps)
    except OverflowError:
        power = float("inf")
    return GeneralizationOrder(
        sizes=(rnn.input_size, rnn.hidden_size, head.out_features),
        steps=steps,
        input_norm=_norm(rnn.weight_ih_l0),
        output_norm=_norm(head.weight),
        transition_norm=transition,
        power=power,
        margin=float(margin),
        samples=samples,
    )


def classification_margins(outputs: Tensor, targets: Tensor) -> Tensor:
    """By how much the right output exceeds the largest other one: (N, k), (N,) -> (N,).

    Example:
        >>> classification_margins(torch.tensor([[3.0, 1.0, 0.0]]), torch.tensor([1]))
        tensor([-2.])
    """
    if outputs.dim() != 2 or targets.shape != outputs.shape[:1] or outputs.shape[1] < 2:
        raise ValueError(
            f"outputs and targets must have shapes (N, k) with k >= 2 and (N,), got "
            f"{tuple(outputs.shape)} and {tuple(targets.shape)}"
        )
    right = outputs.gather(1, targets[:, None])
    others = outputs.scatter(1, targets[:, None], -torch.inf)
    return right[:, 0] - others.amax(1)


def _norm(matrix: Any) -> float:
    return float(torch.linalg.matrix_norm(matrix.detach().double(), 2))
