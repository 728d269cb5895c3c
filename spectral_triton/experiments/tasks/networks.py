"""The recurrent networks that are compared, by name, and the settings only some of them have."""

SPECTRAL_MODELS = ("spectral", "orthogonal")
SPECTRAL_GATES = ("spectral-lstm", "spectral-gru")
GATED_MODELS = ("lstm", "gru", *SPECTRAL_GATES)
MODELS = (*SPECTRAL_MODELS, "rnn", "irnn", *GATED_MODELS)

WITH_FACTORS = (*SPECTRAL_MODELS, *SPECTRAL_GATES)
WITH_MARGIN = ("spectral", *SPECTRAL_GATES)
SETTINGS_OF_SOME = {
    "num_reflectors": WITH_FACTORS,
    "rebase": WITH_FACTORS,
    "margin": WITH_MARGIN,
    "nonlinearity": (*SPECTRAL_MODELS, "rnn"),
    "init": WITH_FACTORS,
    "reflectors_lr": WITH_FACTORS,
    "singular_values_lr": WITH_MARGIN,
}
"""Settings that only these models have a use for."""
