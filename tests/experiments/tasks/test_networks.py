"""Names of the networks, which tasks, command line and pictures share."""

from spectral_triton.experiments.tasks import networks
from spectral_triton.experiments.training.model import GATED_LAYERS


def test_every_network_is_named_once():
    assert len(set(networks.MODELS)) == len(networks.MODELS) == 8
    assert set(networks.GATED_MODELS) == GATED_LAYERS.keys()


def test_settings_of_some_name_networks_that_exist():
    for setting, models in networks.SETTINGS_OF_SOME.items():
        assert 0 < len(set(models) & set(networks.MODELS)) == len(models), setting
