"""What a conversion changed and what it left alone."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ConvertedLayer:
    """A layer that was replaced.

    Attributes:
        name: Where it is in the model; empty for the model itself.
        old_type: The class it was of.
        new_type: The class it is of.
        parameters_before: Numbers it held in parameters.
        parameters_after: Numbers it holds now.
        sigma_before: Smallest and largest singular value of the weights that got bounds.
        sigma_after: The same, now.
        relative_change: Frobenius norm of the difference of these weights over that of the old.
    """

    name: str
    old_type: str
    new_type: str
    parameters_before: int
    parameters_after: int
    sigma_before: tuple[float, float]
    sigma_after: tuple[float, float]
    relative_change: float


@dataclass(frozen=True)
class SkippedLayer:
    """A layer that was selected but left as it is."""

    name: str
    type: str
    reason: str


@dataclass(frozen=True)
class ConversionReport:
    """The layers that :func:`convert` replaced or had to leave alone; prints as a table.

    Attributes:
        converted: One :class:`ConvertedLayer` for each.
        skipped: One :class:`SkippedLayer` for each, with the reason.
        unbounded: Where the whole model was to be converted, name and shape of every other weight
            of two dimensions or more, such as input weights of recurrent layers, embeddings, and
            bare parameters of other modules.

    Example:
        >>> layer = ConvertedLayer(
        ...     "head", "Linear", "SVDLinear", 20, 40, (0.2, 1.1), (0.99, 1.01), 0.3
        ... )
        >>> print(ConversionReport((layer,), ()))
        name  layer                parameters  sigma before   sigma after  change
        head  Linear -> SVDLinear    20 -> 40    0.2 .. 1.1  0.99 .. 1.01   30.0%
    """

    converted: tuple[ConvertedLayer, ...]
    skipped: tuple[SkippedLayer, ...]
    unbounded: tuple[tuple[str, tuple[int, ...]], ...] = ()

    def __str__(self) -> str:
        if not self.converted and not self.skipped and not self.unbounded:
            return "no layer selected"
        header = ("name", "layer", "parameters", "sigma before", "sigma after", "change")
        rows = [
            (
                layer.name or "(model)",
                f"{layer.old_type} -> {layer.new_type}",
                f"{layer.parameters_before} -> {layer.parameters_after}",
                _range(layer.sigma_before),
                _range(layer.sigma_after),
                f"{layer.relative_change:.1%}",
            )
            for layer in self.converted
        ]
        lines = _table([header, *rows]) if rows else []
        lines += [f"skipped {s.name or '(model)'} ({s.type}): {s.reason}" for s in self.skipped]
        weights = [f"{name} {'x'.join(map(str, shape))}" for name, shape in self.unbounded]
        return "\n".join(lines + ([f"without bounds: {', '.join(weights)}"] if weights else []))


def _range(sigma: tuple[float, float]) -> str:
    return f"{sigma[0]:.4g} .. {sigma[1]:.4g}"


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    """Words to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if index < 2 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines
