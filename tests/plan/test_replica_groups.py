"""Device groups of a collective, in every form of HLO text."""

import numpy as np
import pytest

from agent_jax.plan.replica_groups import replica_groups


@pytest.mark.parametrize(("attributes", "expected"), [
    ("replica_groups={{0,2},{1,3}}, x=1", [[0, 2], [1, 3]]),
    ("replica_groups={}, x=1", [[0, 1, 2, 3]]),
    ("channel_id=1", [[0, 1, 2, 3]]),
    ("replica_groups=[2,2]<=[4], x=1", [[0, 1], [2, 3]]),
    ("replica_groups=[2,2]<=[2,2]T(1,0), x=1", [[0, 2], [1, 3]]),
    ("replica_groups=mesh['a'=2,'b'=2] {'a'}, x=1", [[0, 2], [1, 3]]),
    ("replica_groups=mesh['a'=2,'b'=1,'c'=2], device_ids=([2,2]T(1,0)) {'a'}, x=1", [[0, 1], [2, 3]]),
    ("replica_groups=mesh['a'=2,'b'=2] {'a','b'}", [[0, 1, 2, 3]]),
    ("source_target_pairs={{0,1},{1,0}}", [[0, 1], [1, 0]]),
])
def test_groups_are_read_in_every_form(attributes, expected):
    np.testing.assert_array_equal(replica_groups(attributes, 4), expected)


def test_an_unknown_form_of_groups_is_refused():
    with pytest.raises(ValueError, match="replica_groups: found .*an unknown form"):
        replica_groups("replica_groups=everyone", 4)
