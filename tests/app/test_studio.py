"""The two pictures of a pair: from the same noise, one after the other, stoppable."""

import json
import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from skipstep.pipelines.batch.rows import Row
from skipstep.pipelines.batch.stopping import Stop, Stopped
from skipstep.pipelines.pictures import read_metadata
from skipstep.pipelines.ui.album import Album
from skipstep.pipelines.ui.figures import describe_pair, figures_of, verdict_of
from skipstep.pipelines.ui.offered import REFERENCE, default_models, makes_clips
from skipstep.pipelines.ui.studio import Pair, Progress, Shelf, Side, Studio
from skipstep.pipelines.ui.watching import Previews, call_arguments, grid_of, watched
from skipstep.plugins.errors import PluginError
from skipstep.testing import tiny_pipeline

MakeRow = Callable[..., Row]
MakePair = Callable[..., Pair]
EVERY_OTHER = "fora:interval=2,warmup_steps=1"


def test_both_pictures_start_from_the_same_noise(make_pair: MakePair) -> None:
    equal = make_pair(plugins="fora:interval=1")
    assert torch.equal(equal.plain.picture, equal.accelerated.picture)
    assert math.isinf(equal.psnr) and equal.feature_distance == 0
    skipped = make_pair(plugins=EVERY_OTHER)
    assert torch.equal(skipped.plain.picture, equal.plain.picture)
    assert not torch.equal(skipped.accelerated.picture, equal.plain.picture)
    assert 0 < skipped.psnr < 60 and skipped.feature_distance > 0


def test_a_student_takes_its_own_steps_and_the_picture_says_so(
    reference: Any, make_pair: MakePair, tmp_path: Path
) -> None:
    pair = make_pair(plugins="few_step", steps=3)
    assert (pair.plain.steps, pair.accelerated.steps) == (None, 4)
    assert verdict_of(pair).startswith("4 steps of a student against 3 plain ones. ")
    told = [
        json.loads(read_metadata(path))["num_inference_steps"]
        for path in Album(tmp_path).put(pair, reference)
    ]
    assert told == [3, 4]


def test_the_plain_picture_is_what_the_pipeline_makes_alone(
    reference: Any, make_pair: MakePair
) -> None:
    pair = make_pair(plugins=EVERY_OTHER)
    generator = torch.Generator("cpu").manual_seed(3)
    alone = reference(
        "pizza, 3d style",
        num_inference_steps=4,
        width=64,
        height=64,
        generator=generator,
        output_type="np",
    ).images[0]
    found = (pair.plain.picture[0, 0].movedim(0, -1).numpy() + 1) / 2
    assert abs(found - alone).max() < 1e-6


def test_the_timeline_and_the_figures_are_those_of_the_accelerated_run(
    make_pair: MakePair,
) -> None:
    pair = make_pair(plugins=EVERY_OTHER)
    assert pair.timeline == [1.0, 0.0, 1.0, 0.0]
    shown = {figure.name: figure.value for figure in figures_of(pair)}
    assert shown["computed"] == f"{pair.accelerated.report.fraction:.0%}"
    assert {"speed-up", "time", "memory", "PSNR", "SSIM", "LPe"} <= set(shown)
    described = describe_pair(pair)
    assert described["recipe"] == EVERY_OTHER
    assert described["psnr"] == pytest.approx(pair.psnr)


def test_the_verdict_says_what_was_skipped_and_how_close_it_is(make_pair: MakePair) -> None:
    assert "Skipped 4 of 8" in verdict_of(make_pair(plugins=EVERY_OTHER))
    assert "No plugin is on" in verdict_of(make_pair())
    nothing = verdict_of(make_pair(plugins="easycache:threshold=0"))
    assert "Nothing was skipped" in nothing and "identical" in nothing


def test_a_plain_picture_is_made_once(studio: Studio, make_row: MakeRow) -> None:
    heard: list[Any] = []
    for recipe in (EVERY_OTHER, "abcache:interval=2,warmup_steps=1"):
        pair = studio.make_pair(make_row(plugins=recipe), REFERENCE, heard.append, Stop())
    assert pair.plain.is_kept
    assert [event.step for event in heard if event.side == "plain"].count(4) == 1
    other = studio.make_pair(make_row(seed=4), REFERENCE, heard.append, Stop())
    assert not other.plain.is_kept


def test_the_shelf_has_an_end() -> None:
    shelf = Shelf(largest_bytes=2500)
    for number in range(5):
        shelf.put(number, Side(torch.zeros(1, 1, 3, 10, 8), 0.0, None))
        shelf.get(0)
    assert set(shelf.sides) == {0, 4} and shelf.held_bytes <= 2500


def test_progress_counts_every_step_and_shows_previews(
    studio: Studio, make_row: MakeRow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("skipstep.pipelines.ui.watching.SECONDS_BETWEEN", 0.0)
    heard: list[Progress] = []
    studio.make_pair(make_row(plugins=EVERY_OTHER), REFERENCE, heard.append, Stop())
    for side in ("plain", "accelerated"):
        assert [each.step for each in heard if each.side == side] == [0, 1, 2, 3, 4]
    previews = [each.preview for each in heard if each.preview is not None]
    assert len(previews) == 8 and previews[0].shape == (64, 64, 3)
    assert all(each.plain is not None for each in heard if each.side == "accelerated")


@pytest.mark.parametrize("last", ["plain", "accelerated", "warming up"])
def test_a_stopped_run_ends_at_the_next_step_and_the_next_picture_is_right(
    studio: Studio, make_row: MakeRow, make_pair: MakePair, last: str
) -> None:
    row = make_row(plugins=EVERY_OTHER)
    stop, heard = Stop(), []

    def tell(event: Progress) -> None:
        heard.append(event)
        if event.side == last and (event.step == 2 or last == "warming up"):
            stop.ask("the tab was closed")

    with pytest.raises(Stopped):
        studio.make_pair(row, REFERENCE, tell, stop)
    assert max(event.step for event in heard if event.side == last) <= 2
    assert not studio.lock.locked()
    after = make_pair(plugins=EVERY_OTHER)
    fresh = Studio(load=lambda name: studio.pipe)
    expected = fresh.make_pair(row, REFERENCE, lambda event: None, Stop())
    assert torch.equal(after.accelerated.picture, expected.accelerated.picture)
    assert torch.equal(after.plain.picture, expected.plain.picture)


def test_who_waits_for_the_pipeline_can_leave_the_line(studio: Studio, make_row: MakeRow) -> None:
    stop = Stop()
    with studio.lock:
        threading.Timer(0.05, stop.ask, ["left"]).start()
        with pytest.raises(Stopped):
            studio.make_pair(make_row(), REFERENCE, lambda event: None, stop)


def test_a_mistake_leaves_nothing_switched_on(studio: Studio, make_pair: MakePair) -> None:
    with pytest.raises(PluginError, match="deepcache"):
        make_pair(plugins="deepcache")
    with pytest.raises(PluginError, match="ReferencePipeline: ValueError.*divisible by 8"):
        make_pair(size="63")
    with pytest.raises(PluginError, match="the schedule is for 20 steps"):
        make_pair(plugins=planned_recipe())
    assert not studio.lock.locked()


def planned_recipe() -> str:
    """Return a schedule for 20 steps, which four steps are not."""
    return (
        "cache:gate={type: schedule, schedule: {version: 1, kind: skipstep-schedule, steps: 20, "
        "compute: [0, 2]}}"
    )


def test_only_models_that_are_offered_are_loaded() -> None:
    loaded: list[str] = []
    studio = Studio(("reference", "other"), load=lambda name: loaded.append(name))
    with pytest.raises(PluginError, match="model '/etc' is not offered here: reference, other"):
        studio.use("/etc")
    assert not loaded
    studio.use("other")
    studio.use("other")
    assert loaded == ["other"]
    Studio(("reference",), any_model=True).check_model("somebody/else")


def test_a_clip_is_made_twice_and_kept_as_one_file(make_row: MakeRow, tmp_path: Path) -> None:
    studio = Studio(("tiny",), load=lambda name: tiny_pipeline("wan").pipe)
    row = make_row(size="32", plugins=EVERY_OTHER)
    heard: list[Progress] = []
    pair = studio.make_pair(row, "tiny", heard.append, Stop(), frames=5)
    assert pair.plain.picture.shape == (1, 5, 3, 32, 32)
    assert pair.timeline == [1.0, 0.0, 1.0, 0.0] and 0 < pair.psnr < math.inf
    assert [each.preview.shape for each in heard if each.preview is not None]
    paths = Album(tmp_path).put(pair, studio.pipe)
    for path in paths:
        with Image.open(path) as clip:
            assert path.suffix == ".webp" and getattr(clip, "n_frames", 1) == 5
    assert json.loads(read_metadata(paths[1]))["num_frames"] == 5
    with pytest.raises(PluginError, match="WanPipeline makes clips: the Video tab shows them"):
        studio.make_pair(row, "tiny", heard.append, Stop())


def test_a_model_of_pictures_makes_no_clips(studio: Studio, make_row: MakeRow) -> None:
    with pytest.raises(PluginError, match="ReferencePipeline makes pictures: the Create tab"):
        studio.make_pair(make_row(), REFERENCE, lambda event: None, Stop(), frames=5)


def test_models_of_clips_are_known_before_they_are_loaded(tmp_path: Path) -> None:
    names = {"wan": "WanPipeline", "flux": "FluxPipeline", "odd": "os", "none": 7}
    for name, cls in names.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "model_index.json").write_text(json.dumps({"_class_name": cls}))
    found = {name for name in names if makes_clips(str(tmp_path / name))}
    assert found == {"wan"}
    assert makes_clips("video") and not makes_clips("joint") and not makes_clips(REFERENCE)
    assert not makes_clips("no/such-model") and REFERENCE in default_models()


def test_a_new_model_lets_go_of_the_old_one(reference: Any, make_row: MakeRow) -> None:
    studio = Studio(("a", "b"), load=lambda name: reference)
    studio.make_pair(make_row(), "a", lambda event: None, Stop())
    assert studio.shelf.sides
    studio.use("b")
    assert studio.model == "b" and not studio.shelf.sides


def test_newer_and_older_callbacks_are_both_watched() -> None:
    tiny = tiny_pipeline("flux")
    assert "callback_on_step_end" in call_arguments(type(tiny.pipe))
    seen: list[tuple[int, tuple[int, ...]]] = []

    def look(step: int, latents: torch.Tensor | None) -> None:
        assert latents is not None
        seen.append((step, tuple(latents.shape)))

    see = watched(tiny.pipe, Stop(), look)
    tiny.pipe("a fox", **tiny.call, num_inference_steps=3, **see)
    assert [step for step, _ in seen] == [1, 2, 3]
    stop = Stop()
    stop.ask("enough")
    with pytest.raises(Stopped):
        tiny.pipe("a fox", **tiny.call, num_inference_steps=3, **watched(tiny.pipe, stop, print))


def test_packed_latents_become_a_picture_by_what_was_learned() -> None:
    torch.manual_seed(0)
    previews = Previews(pipe=object())
    mixing = torch.randn(8, 3) * 0.1
    latents = torch.randn(1, 24, 8)
    picture = (latents[0] @ mixing).T.reshape(3, 4, 6)
    whole = picture.repeat_interleave(16, 1).repeat_interleave(16, 2)
    assert previews.picture(latents, 96, 64) is None  # nothing is known yet
    previews.learn(whole)
    previews.shown = -math.inf
    shown = previews.picture(latents, 96, 64)
    assert shown is not None and shown.shape[0] / shown.shape[1] == 4 / 6
    expected = ((picture + 1) * 127.5).round().clamp(0, 255)
    found = torch.from_numpy(shown[:: shown.shape[0] // 4, :: shown.shape[1] // 6]).movedim(-1, 0)
    assert (found.float() - expected).abs().max() <= 1


def test_cells_that_do_not_fill_a_picture_show_nothing() -> None:
    assert grid_of(25, 600, 400) is None
    previews = Previews(pipe=object())
    assert previews.picture(torch.zeros(1, 8), 64, 64) is None
    assert previews.picture(None, 64, 64) is None
