"""Reuse: the newest value, whatever the times."""

from skipstep.caching.forecasters.reuse import Reuse


def test_the_newest_anchor_has_weight_one_at_any_distance() -> None:
    assert Reuse().weights([4.0], 9.0) == [1.0]
    assert Reuse().weights([4.0, 1.0, 0.5], 9.0) == [1.0, 0.0, 0.0]
    assert Reuse().anchors == 1
