"""The product: parts by name, by options and as objects; what does not fit is refused in words."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from skipstep.caching.base import Forecaster
from skipstep.caching.forecasters.taylor import Taylor
from skipstep.caching.gates.easycache import EasyCacheGate
from skipstep.caching.gates.growing import GrowingGate
from skipstep.caching.gates.interval import IntervalGate
from skipstep.caching.product import Cache
from skipstep.caching.spans.modules import Modules
from skipstep.caching.spans.output import Output


def test_strings_dicts_and_objects_mean_the_same() -> None:
    by_name = Cache(gate="easycache", forecaster="taylor", span="output")  # type: ignore[arg-type]
    by_options = Cache(
        gate={"type": "easycache"},  # type: ignore[arg-type]
        forecaster={"type": "taylor", "order": 1},  # type: ignore[arg-type]
        span={"type": "output", "delta": False},  # type: ignore[arg-type]
    )
    by_object = Cache(gate=EasyCacheGate(), forecaster=Taylor(), span=Output())
    assert by_name == by_options == by_object
    assert by_name.parts().gate == EasyCacheGate()


def test_options_of_parts_are_kept() -> None:
    cache = Cache(
        gate={"type": "interval", "interval": 7},  # type: ignore[arg-type]
        forecaster={"type": "lagrange", "order": 3},  # type: ignore[arg-type]
        span={"type": "modules", "kinds": ["attention"]},  # type: ignore[arg-type]
    )
    assert cache.parts().forecaster.anchors == 3
    assert cache.span == Modules(kinds=("attention",))


def test_an_interval_gate_takes_the_plugins_warmup_unless_it_has_its_own() -> None:
    assert Cache(gate=IntervalGate(interval=5), warmup_steps=4).parts().gate == IntervalGate(
        interval=5, warmup_steps=4
    )
    own = IntervalGate(interval=5, warmup_steps=2)
    assert Cache(gate=own, warmup_steps=4).parts().gate is own


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"gate": "frist_block"},
            "'frist_block'.*'interval', 'adacache', 'dicache', 'easycache', 'first_block', "
            "'growing', 'magcache', 'schedule', 'seacache', 'speca', 'teacache', 'window'",
        ),
        (
            {"forecaster": "tailor"},
            "'tailor'.*'reuse', 'taylor', 'lagrange', 'hermite', 'foca', 'chebyshev', "
            "'rising', 'dmd'",
        ),
        (
            {"span": "outputs"},
            "'outputs'.*'output', 'residual', 'modules', 'deep_features', 'guidance', "
            "'layers', 'planned_modules', 'tokens', 'influential_tokens', 'clusters'",
        ),
        ({"gate": {"type": "interval", "intervall": 3}}, "gate.interval.intervall"),
        ({"gate": {"type": "interval", "interval": 0}}, "greater than or equal to 1"),
        ({"gate": {"interval": 3}}, "Unable to extract tag"),
        ({"gate": 3}, "gate"),
        ({"gate": Output()}, r"gate=Output\(.*\) is not a Gate"),
        ({"span": Taylor()}, r"span=Taylor\(.*\) is not a Span"),
        ({"span": "tokens", "forecaster": "taylor"}, "'taylor' wants 2 of one step: use 'reuse'"),
        ({"spam": "output"}, "spam"),
        ({"span": {"type": "modules", "kinds": []}}, "kinds"),
        ({"span": {"type": "modules", "kinds": ["mlp"]}}, "'cross_attention' or 'feed_forward'"),
    ],
)
def test_what_is_unknown_is_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=f"(?s){message}"):
        Cache(**options)


def test_a_gate_that_needs_the_first_block_refuses_the_span_that_skips_it() -> None:
    with pytest.raises(ValidationError, match="use span 'residual', or a gate that looks at"):
        Cache(gate="first_block", span="output")  # type: ignore[arg-type]


@pytest.mark.parametrize("span", ["residual", "modules", "deep_features"])
def test_a_gate_that_needs_the_first_block_takes_spans_that_run_it(span: str) -> None:
    assert Cache(gate="first_block", span=span).parts().span.type == span  # type: ignore[arg-type]


def test_a_growing_gate_takes_the_plugins_warmup_too() -> None:
    cache = Cache(gate="growing", forecaster="chebyshev", warmup_steps=4)  # type: ignore[arg-type]
    assert cache.parts().gate == GrowingGate(warmup_steps=4)


def test_a_part_of_your_own_is_taken_as_an_object() -> None:
    @dataclass(frozen=True)
    class Mean(Forecaster):
        type: str = "mean"

        @property
        def anchors(self) -> int:
            return 2

        def weights(self, times: Sequence[float], at: float) -> list[float]:
            return [1 / len(times)] * len(times)

    mine = Mean()
    cache = Cache(forecaster=mine)  # type: ignore[arg-type]
    assert cache.parts().forecaster is mine
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert TypeAdapter(Cache).dump_python(cache)["forecaster"] == {"type": "mean"}
