"""Topologies by name, and the bandwidth between their devices."""

import numpy as np
import pytest

from agent_jax.plan.chips import CHIPS
from agent_jax.plan.topology import find_topology, known_topologies


@pytest.mark.parametrize(("name", "devices", "hosts", "shape"), [
    ("v4-8", 4, 1, (2, 2, 1)), ("v4-32", 16, 4, (2, 2, 4)), ("v4-128", 64, 16, (4, 4, 4)), ("v5p-8", 4, 1, (2, 2, 1)),
    ("v5e-16", 16, 4, (4, 4)), ("v6e-8", 8, 2, (2, 4)), ("2xv4-32", 32, 8, (2, 2, 4)), ("h100-8", 8, 1, (8,)),
    ("h100-16", 16, 2, (16,)), ("a100-1", 1, 1, (1,)),
])
def test_a_name_gives_chips_hosts_and_shape(name, devices, hosts, shape):
    found = find_topology(name)
    assert (found.devices, found.hosts, found.shape) == (devices, hosts, shape)


def test_every_known_name_is_found_and_every_chip_has_names():
    found = [find_topology(name) for name in known_topologies()]
    assert {topology.chip.name for topology in found} == set(CHIPS)


@pytest.mark.parametrize("name", ["v9-8", "v4-10", "v4", "h100-3", "2xh100-8", "0xv4-8", ""])
def test_an_unknown_name_is_refused_with_the_known_ones(name):
    with pytest.raises(ValueError, match=rf"--topology={name}: unknown; expected one of") as error:
        find_topology(name)
    for chip in CHIPS:
        assert f"{chip}-N: N of " in str(error.value)
    assert "v4-N: N of 8, 16, 32, 64, 128" in str(error.value)


def bandwidth(name, groups):
    topology = find_topology(name)
    return topology.bandwidth(np.asarray(groups), [object()] * topology.devices) / topology.chip.link_bandwidth


def test_a_tpu_group_has_the_links_of_the_dimensions_it_spans():
    assert bandwidth("v4-8", [[0, 1], [2, 3]]) == 1  # neighbours along a dimension of two chips: one link
    assert bandwidth("v4-8", [[0, 1, 2, 3]]) == 2
    assert bandwidth("v4-32", [[0, 1, 2, 3]]) == 2  # a ring of four, both ways round
    assert bandwidth("v4-32", [list(range(16))]) == 4
    assert bandwidth("v5e-16", [list(range(16))]) == 4


def test_slices_and_nodes_are_joined_by_the_network():
    v4, h100 = CHIPS["v4"], CHIPS["h100"]
    assert bandwidth("2xv4-32", [[0, 16]]) * v4.link_bandwidth == v4.network_bandwidth
    assert bandwidth("2xv4-32", [[16, 17]]) == 2
    assert bandwidth("h100-16", [list(range(8))]) == 1
    assert bandwidth("h100-16", [[0, 8]]) * h100.link_bandwidth == h100.network_bandwidth
