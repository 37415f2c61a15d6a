"""The papers' caches: which parts they make, their rhythm, and strict options."""

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from skipstep.caching.abcache import ABCache
from skipstep.caching.adacache import AdaCache
from skipstep.caching.base import CachePlugin, Step
from skipstep.caching.cfgcache import CFGCache
from skipstep.caching.clusca import ClusCa
from skipstep.caching.dbcache import DBCache
from skipstep.caching.deepcache import DeepCache
from skipstep.caching.deltadit import DeltaDiT
from skipstep.caching.dicache import DiCache
from skipstep.caching.duca import DuCa
from skipstep.caching.easycache import EasyCache
from skipstep.caching.ecad import ECAD
from skipstep.caching.fastercache import FasterCache
from skipstep.caching.fbcache import FBCache
from skipstep.caching.foca import FoCa
from skipstep.caching.fora import FORA
from skipstep.caching.forecasters.chebyshev import Chebyshev
from skipstep.caching.forecasters.damped import Damped
from skipstep.caching.forecasters.dmd import DynamicModes
from skipstep.caching.forecasters.foca import FoCaForecaster
from skipstep.caching.forecasters.frequency import FrequencySplit
from skipstep.caching.forecasters.hermite import Hermite
from skipstep.caching.forecasters.lagrange import Lagrange
from skipstep.caching.forecasters.reuse import Reuse
from skipstep.caching.forecasters.rising import Rising
from skipstep.caching.forecasters.taylor import Taylor
from skipstep.caching.foresight import Foresight
from skipstep.caching.freqca import FreqCa
from skipstep.caching.gates.adacache import AdaCacheGate
from skipstep.caching.gates.dicache import DiCacheGate
from skipstep.caching.gates.easycache import EasyCacheGate
from skipstep.caching.gates.first_block import FirstBlockGate
from skipstep.caching.gates.growing import GrowingGate
from skipstep.caching.gates.interval import IntervalGate
from skipstep.caching.gates.mag_calibration import MagCalibration
from skipstep.caching.gates.magcache import MagCacheGate, MagnitudeRatios
from skipstep.caching.gates.seacache import SeaCacheGate
from skipstep.caching.gates.speca import SpeCaGate
from skipstep.caching.gates.tea_calibration import TeaCalibration
from skipstep.caching.gates.teacache import TeaCacheGate
from skipstep.caching.gates.window import WindowGate
from skipstep.caching.hicache import HiCache
from skipstep.caching.hicachepp import HiCachePP
from skipstep.caching.magcache import MagCache, MagCacheCalibration
from skipstep.caching.pab import PAB
from skipstep.caching.product import Cache
from skipstep.caching.seacache import SeaCache
from skipstep.caching.spans.clusters import Clusters
from skipstep.caching.spans.deep_features import DeepFeatures
from skipstep.caching.spans.guidance import Guidance
from skipstep.caching.spans.influence import InfluentialTokens
from skipstep.caching.spans.layers import Layers
from skipstep.caching.spans.modules import Modules
from skipstep.caching.spans.output import Output
from skipstep.caching.spans.planned import ModulePlan, PlannedModules
from skipstep.caching.spans.residual import Residual
from skipstep.caching.spans.tokens import Tokens
from skipstep.caching.speca import SpeCa
from skipstep.caching.spectrum import Spectrum
from skipstep.caching.taylorseer import TaylorSeer
from skipstep.caching.teacache import TeaCache, TeaCacheCalibration
from skipstep.caching.tgate import TGate
from skipstep.caching.toca import ToCa

PARTS: dict[type[CachePlugin], tuple[type, type, type]] = {
    FORA: (IntervalGate, Reuse, Modules),
    FBCache: (FirstBlockGate, Reuse, Residual),
    DuCa: (IntervalGate, Reuse, Tokens),
    ToCa: (IntervalGate, Reuse, InfluentialTokens),
    ClusCa: (IntervalGate, Taylor, Clusters),
    Foresight: (IntervalGate, Reuse, Layers),
    FasterCache: (IntervalGate, Rising, Modules),
    ECAD: (IntervalGate, Reuse, PlannedModules),
    EasyCache: (EasyCacheGate, Reuse, Output),
    TaylorSeer: (IntervalGate, Taylor, Modules),
    ABCache: (IntervalGate, Lagrange, Output),
    DeepCache: (IntervalGate, Reuse, DeepFeatures),
    HiCache: (IntervalGate, Hermite, Residual),
    HiCachePP: (IntervalGate, DynamicModes, Residual),
    FoCa: (IntervalGate, FoCaForecaster, Residual),
    FreqCa: (IntervalGate, FrequencySplit, Residual),
    Spectrum: (GrowingGate, Chebyshev, Residual),
    CFGCache: (IntervalGate, Reuse, Guidance),
    DeltaDiT: (IntervalGate, Reuse, Residual),
    Cache: (FirstBlockGate, Reuse, Residual),
    MagCacheCalibration: (MagCalibration, Reuse, Residual),
    MagCache: (MagCacheGate, Reuse, Residual),
    AdaCache: (AdaCacheGate, Reuse, Residual),
    DBCache: (FirstBlockGate, Reuse, Residual),
    DiCache: (DiCacheGate, Taylor, Residual),
    PAB: (WindowGate, Reuse, Modules),
    TGate: (WindowGate, Reuse, Modules),
    SeaCache: (SeaCacheGate, Taylor, Residual),
    SpeCa: (SpeCaGate, Taylor, Residual),
    TeaCache: (TeaCacheGate, Reuse, Residual),
    TeaCacheCalibration: (TeaCalibration, Reuse, Residual),
}
PRESETS = list(PARTS)
RATIOS = MagnitudeRatios(ratios=(1.0, 1.1, 1.05))
PLAN = ModulePlan(components=("attention",), compute=(("1",),))
NEEDED = {MagCache: {"ratios": RATIOS}, ECAD: {"plan": PLAN}}


@pytest.mark.parametrize("preset", PRESETS)
def test_parts_are_the_papers(preset: type[CachePlugin]) -> None:
    parts = preset(**NEEDED.get(preset, {})).parts()  # type: ignore[arg-type]
    assert (type(parts.gate), type(parts.forecaster), type(parts.span)) == PARTS[preset]


def test_options_reach_the_parts() -> None:
    assert FBCache(threshold=0.2).parts().gate == FirstBlockGate(threshold=0.2)
    assert EasyCache(threshold=0.2).parts().gate == EasyCacheGate(threshold=0.2)
    assert EasyCache().parts().span == Output(delta=True)
    assert EasyCache(delta=False).parts().span == Output(delta=False)
    assert ABCache(order=3).parts().forecaster == Lagrange(order=3)
    assert ABCache().parts().span == Output(delta=False)
    assert TaylorSeer(order=2).parts().forecaster == Taylor(order=2)
    assert HiCache(order=2, sigma=0.6).parts().forecaster == Hermite(order=2, sigma=0.6)
    assert HiCachePP(window=9, max_growth=3).parts().forecaster == DynamicModes(
        window=9, max_growth=3
    )
    split = FreqCa(cutoff=0.3, order=2, sigma=0.7, grid=(4, 6)).parts().forecaster
    assert split == FrequencySplit(cutoff=0.3, order=2, sigma=0.7, grid=(4, 6))
    spectrum = Spectrum(gap=3, growth=1, degree=2, penalty=0.2, window=7, mix=0.9).parts()
    assert spectrum.forecaster == Chebyshev(degree=2, penalty=0.2, window=7, mix=0.9)
    assert spectrum.gate == GrowingGate(window=3, growth=1, warmup_steps=5)
    rhythms: list[Any] = [FORA, TaylorSeer, ABCache, DeepCache, DeltaDiT, CFGCache, DuCa]
    rhythms += [HiCache, HiCachePP, FoCa, FreqCa, ToCa, ClusCa, Foresight, FasterCache]
    for preset in rhythms:
        gate = preset(interval=7, warmup_steps=4).parts().gate
        assert gate == IntervalGate(interval=7, warmup_steps=4)
    span = DeltaDiT(kept_blocks=3, boundary=0.25).parts().span
    assert span == Residual(first_blocks=3, last_blocks=0, swap_at=0.25)
    assert DuCa(share=0.5, every=3).parts().span == Tokens(share=0.5, every=3)
    assert Foresight(tolerance=2).parts().span == Layers(tolerance=2)
    assert FasterCache(start=0.1, stop=0.6).parts().forecaster == Rising(start=0.1, stop=0.6)
    clusca = ClusCa(clusters=9, propagation=0.1, order=2).parts()
    assert clusca.span == Clusters(clusters=9, propagation=0.1)
    assert clusca.forecaster == Taylor(order=2)
    assert ClusCa(order=0).parts().forecaster == Reuse()
    weights = {"influence": 2, "entropy": 3, "waiting": 4, "spread": 5}
    toca = ToCa(interval=6, share=0.3, **weights).parts()  # type: ignore[arg-type]
    assert toca.span == InfluentialTokens(share=0.3, period=6, **weights)  # type: ignore[arg-type]
    assert ECAD(plan=PLAN).parts().span == PlannedModules(plan=PLAN)
    speca = SpeCa(threshold=0.4, decay=0.5, floor=0.1, order=2).parts()
    assert speca.gate == SpeCaGate(threshold=0.4, decay=0.5, floor=0.1)
    assert (speca.forecaster, speca.span) == (Taylor(order=2), Residual(last_blocks=1))
    guidance = CFGCache(low_weight=1.2, high_weight=0.9).parts().span
    assert guidance == Guidance(low_weight=1.2, high_weight=0.9)
    gate = DeepCache(center=0.4, power=2).parts().gate
    assert gate == IntervalGate(interval=3, warmup_steps=1, center=0.4, power=2)


@pytest.mark.parametrize("preset", [ABCache, TaylorSeer, HiCache, FoCa, SpeCa, Spectrum])
def test_a_limit_of_the_noise_gain_goes_around_the_forecaster(preset: type[Any]) -> None:
    plain = preset().parts().forecaster
    limited = preset(max_noise_gain=2).parts().forecaster
    assert limited == Damped(forecaster=plain, damping=0, max_noise_gain=2)


@pytest.mark.parametrize(
    ("preset", "computed"),
    [
        (FORA(interval=3, warmup_steps=1), [0, 3, 6, 9, 12, 15, 18]),
        (FORA(), [0, 1, 2, 3, 6, 9, 12, 15, 18]),
        (TaylorSeer(), [0, 1, 2, 3, 4, 8, 12, 16]),
        (ABCache(), [0, 1, 2, 3, 4, 7, 10, 13, 16, 19]),
        (DeepCache(), [0, 3, 6, 9, 12, 15, 18]),
        (HiCache(), [0, 1, 2, 3, 4, 8, 12, 16]),
        (Spectrum(), [0, 1, 2, 3, 4, 6, 8, 11, 15]),
    ],
    ids=lambda x: getattr(x, "name", ""),
)
def test_static_presets_compute_these_of_20_steps(preset: CachePlugin, computed: list[int]) -> None:
    gate = preset.parts().gate
    assert [i for i in range(20) if gate.decide(gate.init(1), Step(i, 20), None)[0].compute] == (
        computed
    )


@pytest.mark.parametrize("preset", PRESETS)
def test_every_field_is_described_and_every_class_is_labelled(preset: type[CachePlugin]) -> None:
    fields = preset.__pydantic_fields__  # type: ignore[attr-defined]
    assert {"warmup_steps", "final_steps", "max_skips"} <= set(fields)
    for name, field in fields.items():
        assert field.description and field.description.endswith("."), name
    assert preset.kind == "cache" and preset.name == preset.__name__.lower()
    assert preset.summary.endswith(".") and "\n" not in preset.summary
    assert preset is Cache or preset.paper


@pytest.mark.parametrize("preset", PRESETS)
def test_options_are_strict_frozen_and_survive_json(preset: type[CachePlugin]) -> None:
    plugin: Any = preset()
    with pytest.raises(ValidationError, match="treshold"):
        preset(treshold=0.1)  # type: ignore[call-arg]
    with pytest.raises(AttributeError):
        plugin.warmup_steps = 9
    for bad in ({"warmup_steps": 0}, {"final_steps": -1}, {"max_skips": 0}):
        with pytest.raises(ValidationError, match=next(iter(bad))):
            preset(**bad)  # type: ignore[arg-type]
    adapter = TypeAdapter(preset)
    assert adapter.validate_json(adapter.dump_json(plugin)) == plugin
    assert adapter.json_schema()["additionalProperties"] is False


def test_magcache_without_ratios_says_how_to_get_them() -> None:
    assert "skipstep.calibrate_magcache(" in (MagCache().why_not(None) or "")
    with pytest.raises(ValueError, match="magcache has no ratios"):
        MagCache().parts()
    assert MagCache(ratios=RATIOS).why_not(None) is None


def test_every_calibration_has_a_record_of_its_own_and_takes_none_as_option() -> None:
    one, two = MagCacheCalibration(), MagCacheCalibration()
    assert one.record is not two.record
    gate = one.parts().gate
    assert isinstance(gate, MagCalibration) and gate.record is one.record
    assert "record" not in TypeAdapter(MagCacheCalibration).json_schema()["properties"]
    with pytest.raises(ValidationError, match="record"):
        MagCacheCalibration(record=one.record)  # type: ignore[call-arg]


@pytest.mark.parametrize("preset", [FORA, TaylorSeer, ABCache, DeepCache])
def test_interval_bounds(preset: type[CachePlugin]) -> None:
    for interval in (0, -2, 1.5, "often"):
        with pytest.raises(ValidationError, match="interval"):
            preset(interval=interval)  # type: ignore[call-arg]
