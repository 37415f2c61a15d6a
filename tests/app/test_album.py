"""Pictures know how they were made, and a PNG from a stranger is only looked at."""

import json
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from skipstep.pipelines.pictures import read_metadata, to_png
from skipstep.pipelines.ui.album import Album, read_picture_settings
from skipstep.pipelines.ui.limits import Limits
from skipstep.pipelines.ui.studio import Pair
from skipstep.plugins.errors import PluginError

PROMPT = "../<b>pizza</b>, 3d style"


def chunk(name: bytes, content: bytes) -> bytes:
    """Return one chunk of a PNG."""
    body = name + content
    return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))


def png_of(size: int, text: str) -> bytes:
    """Return a PNG that claims a size and holds a text, with next to no pixels."""
    head = struct.pack(">IIBBBBB", size, size, 8, 2, 0, 0, 0)
    words = b"skipstep\0\0\0\0\0" + text.encode()
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"iTXt", words)
        + chunk(b"IDAT", zlib.compress(b"\0" * 100))
        + chunk(b"IEND", b"")
    )


def test_settings_come_back_from_a_picture(
    tmp_path: Path, reference: Any, make_pair: Callable[..., Pair]
) -> None:
    pair = make_pair(
        prompt=PROMPT,
        negative="red",
        plugins="fora:interval=2,warmup_steps=1 + textkv:entries=2",
        guidance=2.5,
    )
    plain, accelerated = Album(tmp_path).put(pair, reference)
    found = read_picture_settings(accelerated, Limits())
    assert found == {
        "prompt": PROMPT,
        "negative": "red",
        "seed": 3,
        "steps": 4,
        "guidance": 2.5,
        "size": "64x64",
        "recipe": "fora:interval=2,warmup_steps=1 + textkv:entries=2",
        "model": "reference",
    }
    assert read_picture_settings(plain, Limits())["recipe"] == ""
    told = json.loads(read_metadata(accelerated))
    assert told["verdict"] and told["psnr"] == pytest.approx(pair.psnr)


def test_no_file_is_named_after_a_prompt_and_the_oldest_go(
    tmp_path: Path, reference: Any, make_pair: Callable[..., Pair]
) -> None:
    album, pair = Album(tmp_path, most=3), make_pair(prompt=PROMPT)
    for _ in range(3):
        last = album.put(pair, reference)
    names = [path.name for path in tmp_path.iterdir()]
    assert len(names) == 3 and set(path.name for path in last) <= set(names)
    assert all(re.fullmatch(r"[0-9a-f]{16}\.png", name) for name in names)


def test_a_huge_picture_is_not_decoded(tmp_path: Path) -> None:
    file = tmp_path / "bomb.png"
    file.write_bytes(png_of(13_000, json.dumps({"prompt": "a fox", "seed": 1})))
    assert read_picture_settings(file, Limits())["prompt"] == "a fox"
    file.write_bytes(png_of(60_000, json.dumps({"prompt": "a fox"})))
    with pytest.raises(PluginError, match="no PNG, or a damaged one"):
        read_picture_settings(file, Limits())


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ("no json", "says nothing about how it was made"),
        ("[1]", "says nothing about how it was made"),
        ("{}", "prompt is empty"),
        ('{"prompt": "a", "seed": "x"}', "must be a whole number"),
        ('{"prompt": "a", "num_inference_steps": 5000}', "steps=5000 is not allowed"),
        ('{"prompt": "a", "width": 1e9, "height": "; rm"}', "is not a size"),
        ('{"prompt": "a", "plugins": "easycache"}', "no list of plugins"),
        ('{"prompt": "a", "plugins": [{"options": {}}]}', "a plugin needs a name"),
        ('{"prompt": "a", "plugins": [{"name": "x:y"}]}', "recipe"),
        ('{"prompt": "a", "plugins": [{"name": "easycache", "options": [1]}]}', "options"),
        ("[" * 100_000, "says nothing about how it was made"),
    ],
)
def test_what_a_picture_says_is_checked(tmp_path: Path, told: str, words: str) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(png_of(8, told))
    with pytest.raises(PluginError, match=words):
        read_picture_settings(file, Limits())


def test_other_files_are_refused_in_words(tmp_path: Path) -> None:
    plain = tmp_path / "plain.png"
    plain.write_bytes(to_png(Image.new("RGB", (8, 8))))
    with pytest.raises(PluginError, match="says nothing about how it was made"):
        read_picture_settings(plain, Limits())
    jpeg = tmp_path / "photo.png"
    Image.new("RGB", (8, 8)).save(jpeg, "JPEG")
    with pytest.raises(PluginError, match="no PNG"):
        read_picture_settings(jpeg, Limits())


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 300), st.binary(max_size=8))
def test_a_damaged_picture_never_escapes_as_an_error_of_ours(
    tmp_path: Path, place: int, garbage: bytes
) -> None:
    whole = png_of(8, json.dumps({"prompt": "a fox", "seed": 1}))
    file = tmp_path / "a.png"
    file.write_bytes(whole[:place] + garbage + whole[place + len(garbage) :])
    try:
        found = read_picture_settings(file, Limits())
    except PluginError:
        return
    assert found["prompt"]
