"""The search for source settings: never worse, reproducible, and useful where the default settings fail."""

import numpy as np
import pytest

from protocol.parameters import ParameterError
from protocol.quantum.link import LinkParameters
from protocol.quantum.optimise import best_source
from protocol.quantum.plan import plan_link


@pytest.mark.slow
def test_settings_found_beat_the_defaults_and_rescue_short_blocks():
    link = LinkParameters()
    for pulses in (30_000_000, 1_000_000_000):
        before = plan_link(link, pulses).key_length.bits
        found, plan = best_source(link, pulses, np.random.default_rng(1), evaluations=300)
        assert plan.key_length.bits > 1.1 * before
        assert plan == plan_link(found, pulses)
        assert found.channel == link.channel


def test_equal_seeds_find_equal_settings_and_nothing_worse():
    link = LinkParameters()
    found = [best_source(link, 10**9, np.random.default_rng(4), evaluations=20) for _ in range(2)]
    assert found[0] == found[1]
    assert found[0][1].key_length.bits >= plan_link(link, 10**9).key_length.bits


def test_single_photons_have_nothing_to_optimise():
    link = LinkParameters.from_mapping({"source": {"model": "single_photon"}})
    with pytest.raises(ParameterError, match="weak-coherent"):
        best_source(link, 10**8, np.random.default_rng(1))
