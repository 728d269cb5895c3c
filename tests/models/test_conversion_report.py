"""The table of a conversion."""

from spectral_triton.models.conversion_report import ConversionReport, ConvertedLayer, SkippedLayer


def test_table():
    layers = (
        ConvertedLayer("", "Linear", "SVDLinear", 6, 12, (0.25, 1.5), (0.99, 1.01), 0.125),
        ConvertedLayer("a.b", "RNN", "SpectralRNN", 100, 9, (0, 2), (1, 1), float("inf")),
    )
    report = ConversionReport(layers, (SkippedLayer("c", "Conv9d", "no reason"),))
    assert str(report).splitlines() == [
        "name     layer                parameters  sigma before   sigma after  change",
        "(model)  Linear -> SVDLinear     6 -> 12   0.25 .. 1.5  0.99 .. 1.01   12.5%",
        "a.b      RNN -> SpectralRNN     100 -> 9        0 .. 2        1 .. 1    inf%",
        "skipped c (Conv9d): no reason",
    ]


def test_without_layers():
    assert str(ConversionReport((), ())) == "no layer selected"
    skipped = SkippedLayer("", "Linear", "frozen in time")
    assert str(ConversionReport((), (skipped,))) == "skipped (model) (Linear): frozen in time"


def test_weights_without_bounds():
    unbounded = (("attention.in_proj_weight", (12, 4)), ("kernel", (2, 3, 4)))
    lines = "without bounds: attention.in_proj_weight 12x4, kernel 2x3x4"
    assert str(ConversionReport((), (), unbounded)) == lines
    skipped = SkippedLayer("", "Linear", "frozen in time")
    assert str(ConversionReport((), (skipped,), unbounded)).splitlines()[1] == lines
