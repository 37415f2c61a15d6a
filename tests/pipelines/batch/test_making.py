"""Making batches: rows of their own noise, failures that stay with their row, memory that ends."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from skipstep.pipelines.batch.drawing import Drawing
from skipstep.pipelines.batch.making import Made, Maker, Mode, in_words, is_out_of_memory
from skipstep.pipelines.batch.rows import Row, recipe_text
from skipstep.pipelines.pictures import read_metadata
from skipstep.plugins import options
from skipstep.plugins.errors import Incompatible
from skipstep.testing.families import tiny_pipeline
from skipstep.testing.painter import Painter

FORA = recipe_text([options.build("fora", {"interval": 2, "warmup_steps": 1})])


def rows(*prompts: str, **fields: Any) -> list[Row]:
    return [
        Row(id=str(i), line=i, prompt=prompt, seed=i, **{"steps": 4, **fields})
        for i, prompt in enumerate(prompts)
    ]


def maker_of(pipe: Any, mode: Mode = "planned") -> Maker:
    return Maker(Drawing(pipe), mode)


def pixels_of(made: Made) -> Any:
    with Image.open(io.BytesIO(made.files["png"])) as image:
        return np.asarray(image).astype(int)


@pytest.fixture(scope="module")
def tiny() -> Any:
    return tiny_pipeline("pixart").pipe


def test_a_batch_is_one_call_and_rows_keep_their_order() -> None:
    pipe = Painter()
    made = maker_of(pipe).make(rows("a", "b", "c"))
    assert pipe.calls == [["a", "b", "c"]]
    assert [(each.row.prompt, each.status, each.batch_size) for each in made] == [
        ("a", "ok", 3), ("b", "ok", 3), ("c", "ok", 3),
    ]  # fmt: skip


def test_a_row_that_fails_is_tried_alone_and_its_neighbours_get_their_pictures() -> None:
    pipe = Painter()
    made = maker_of(pipe).make(rows("a", "raise", "c"))
    assert pipe.calls == [["a", "raise", "c"], ["a"], ["raise"], ["c"]]
    assert [(each.status, each.batch_size) for each in made] == [("ok", 1), ("error", 1), ("ok", 1)]
    assert made[1].error == "RuntimeError: the prompt says so" and not made[1].files


def test_a_batch_that_does_not_fit_is_halved_and_the_next_one_is_tried_whole() -> None:
    pipe = Painter()
    maker = maker_of(pipe)
    made = maker.make(rows("oom", "b", "c", "d"))
    assert [len(call) for call in pipe.calls] == [4, 2, 1, 1, 2]
    assert [(each.status, each.batch_size) for each in made] == [
        ("ok", 1), ("ok", 1), ("ok", 2), ("ok", 2),
    ]  # fmt: skip
    maker.make(rows("e", "f", "g", "h"))
    assert len(pipe.calls[-1]) == 4


def test_seeded_does_not_try_a_size_again_that_did_not_fit() -> None:
    pipe = Painter()
    maker = maker_of(pipe, "seeded")
    maker.make(rows("oom", "b"))
    maker.make(rows("c", "d"))
    assert [len(call) for call in pipe.calls] == [2, 1, 1, 1, 1]


def test_a_row_that_does_not_fit_alone_is_given_up() -> None:
    made = maker_of(Painter()).make(rows("oom-alone", "b"))
    assert [each.status for each in made] == ["oom", "ok"]
    assert "out of memory" in (made[0].error or "")


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        (torch.OutOfMemoryError("x"), True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 4 bytes"), True),
        (RuntimeError("shapes cannot be multiplied"), False),
    ],
)
def test_what_counts_as_out_of_memory(error: Exception, is_memory: bool) -> None:
    assert is_out_of_memory(error) is is_memory


@pytest.mark.parametrize("word", ["nan", "black"])
def test_a_picture_that_is_none_is_made_once_more_alone_and_then_given_up(word: str) -> None:
    pipe = Painter()
    made = maker_of(pipe).make(rows("a", f"{word} b"))
    assert pipe.calls == [["a", f"{word} b"], [f"{word} b"]]
    assert [each.status for each in made] == ["ok", word]
    assert "alone and without plugins" in (made[1].error or "")


def test_nan_under_a_plugin_is_made_again_without_it(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = tiny.vae.decode

    def break_under_plugins(latents: torch.Tensor, **given: Any) -> Any:
        broken = any(row.is_active for row in tiny.list_plugins().rows)
        return decode(latents * float("nan") if broken else latents, **given)

    monkeypatch.setattr(tiny.vae, "decode", break_under_plugins)
    maker = maker_of(tiny)
    (made,) = maker.make(rows("a", width=32, height=32, plugins=FORA))
    assert (made.status, made.without_plugins, made.fraction) == ("ok", True, 1.0)
    maker.task.close()


def test_errors_are_one_short_line_without_control_characters() -> None:
    words = in_words(ValueError("a\n\x1b[2J" + "b" * 1000))
    assert words.startswith("ValueError: a ?[2Jb") and len(words) == 500


def test_a_field_that_the_pipeline_does_not_take_is_told(tiny: Any) -> None:
    class Plain(Painter):
        def __call__(  # type: ignore[override]  # a pipeline without guidance is the point
            self, prompt: Any, num_inference_steps: int, generator: Any, output_type: str
        ) -> Any:
            return super().__call__(prompt, num_inference_steps, generator, output_type)

    (made,) = maker_of(Plain()).make(rows("a", guidance=2.0))
    assert made.error == "Incompatible: Plain takes no guidance_scale: leave it out"


def test_pipelines_of_class_numbers_are_refused_in_words() -> None:
    with pytest.raises(Incompatible, match="DiTPipeline is told what to make by class numbers"):
        Drawing(tiny_pipeline("dit").pipe)


def test_clips_are_webp_or_mp4_and_say_how_they_were_made(tmp_path: Path) -> None:
    class Clips(Painter):
        def __call__(self, *given: Any, num_frames: int = 2, **named: Any) -> dict[str, Any]:
            pictures = super().__call__(*given, **named)["images"]
            moving = [pictures / (frame + 1) for frame in range(num_frames)]
            return {"frames": np.stack(moving, axis=1)}

    for ending in ("webp", "mp4"):
        (made,) = Maker(Drawing(Clips(), clips=ending)).make(rows("a", frames=3))
        assert (made.status, list(made.files)) == ("ok", [ending])
        (tmp_path / f"a.{ending}").write_bytes(made.files[ending])
        assert json.loads(read_metadata(tmp_path / f"a.{ending}"))["num_frames"] == 3
    with Image.open(tmp_path / "a.webp") as image:
        assert image.n_frames == 3  # type: ignore[attr-defined]  # animations have it
    (made,) = maker_of(Painter()).make(rows("a", frames=3))
    assert made.error == "Incompatible: Painter takes no num_frames: leave it out"


def test_plugins_stay_attached_between_batches_and_are_off_at_the_end(tiny: Any) -> None:
    maker = maker_of(tiny)
    first = maker.make(rows("a", "b", width=32, height=32, plugins=FORA))
    manager = [row for row in tiny.list_plugins().rows if row.is_active]
    assert len(manager) == 1 and first[0].fraction < 1
    maker.make(rows("a", width=32, height=32))
    assert not [row for row in tiny.list_plugins().rows if row.is_active]
    maker.make(rows("a", width=32, height=32, plugins=FORA))
    maker.task.close()
    assert not [row for row in tiny.list_plugins().rows if row.is_active]


@pytest.mark.parametrize("plugins", ["[]", FORA])
def test_planned_a_batch_is_the_same_to_the_bit_however_often_and_after_whatever(
    tiny: Any, plugins: str
) -> None:
    maker = maker_of(tiny)
    batch = rows("a cat", "a dog", width=32, height=32, plugins=plugins)
    first = maker.make(batch)
    maker.make(rows("other", width=24, height=24, steps=3, plugins=plugins))
    second = maker.make(batch)
    maker.task.close()
    third = maker_of(tiny).make(batch)
    for one, two, three in zip(first, second, third, strict=True):
        assert one.files.keys() == {"png"}
        assert one.files == two.files == three.files
        assert one.fraction == two.fraction == three.fraction


@pytest.mark.parametrize("plugins", ["[]", FORA])
def test_seeded_a_picture_is_the_same_up_to_rounding_in_any_batch(tiny: Any, plugins: str) -> None:
    maker = maker_of(tiny, "seeded")
    batch = rows("a cat", "a dog", "a bird", width=32, height=32, plugins=plugins)
    together = maker.make(batch)
    alone = [maker.make([row])[0] for row in batch]
    maker.task.close()
    for one, other in zip(together, alone, strict=True):
        difference = np.abs(pixels_of(one) - pixels_of(other))
        assert difference.max() <= 1


def test_solo_a_picture_does_not_depend_on_the_rows_beside_it(tiny: Any, tmp_path: Path) -> None:
    from skipstep.pipelines.batch.job import Job, run_batch

    digests = []
    for name, prompts in (("few", "a cat\n"), ("many", "a cat\na dog\na bird\n")):
        (tmp_path / f"{name}.txt").write_text(prompts)
        job = Job(
            tmp_path / f"{name}.txt", tmp_path / name, mode="solo", batch_size=4, size="32", steps=3
        )
        run_batch(job, lambda: tiny)
        digests.append((tmp_path / name / "pictures" / "000000" / "0000001.png").read_bytes())
    assert digests[0] == digests[1]
