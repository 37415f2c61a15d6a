"""What the web UI stands: a start, many requests at once, and whatever a stranger sends.

    python -m benchmarks.app ready                 seconds until the page answers, imports apart
    python -m benchmarks.app load --requests 50    sent at once by 8 clients, three times over
    python -m benchmarks.app fuzz --rounds 30      nonsense for every endpoint and every event

`load` counts what was answered, what was refused and with which words, and the server's memory.
`fuzz` sends values of wrong types, sizes and paths; a fault is an answer without words of ours, and
every file that the process opens meanwhile outside its folders is told.
"""

import argparse
import collections
import inspect
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

__all__ = ["Fuzzer", "Opened", "serving"]

READY = """
import sys, time
began, busy = time.perf_counter(), time.process_time()
import gradio, httpx, tempfile
from pathlib import Path
from skipstep.pipelines.ui.studio import Studio
import diffusers, transformers
from diffusers import AutoencoderTiny, DPMSolverMultistepScheduler, PixArtSigmaPipeline
from transformers import BertModel
from skipstep.app import build_app, looks
from skipstep.pipelines.ui.limits import Limits
from skipstep.pipelines.ui.server import import_gradio, launch_settings
from skipstep.pipelines.ui import api, create_tab, splat_tab, video_tab
between, busy_between = time.perf_counter(), time.process_time()
with tempfile.TemporaryDirectory() as folder:
    page = build_app(Studio(), Path(folder))
    settings = launch_settings(Limits()) | looks(gradio)
    _, url, _ = page.launch(**settings, quiet=True, prevent_thread_lock=True)
    assert httpx.get(url).status_code == 200
    ended, busy_ended = time.perf_counter(), time.process_time()
    page.close()
print(f"imports      {between - began:6.1f} s, {busy_between - busy:5.1f} CPU s")
print(f"then ready   {ended - between:6.1f} s, {busy_ended - busy_between:5.1f} CPU s")
"""


@contextmanager
def serving(folder: Path, **limits: Any) -> Iterator[tuple[Any, str]]:
    """Serve the page of the reference model in this process; yield it and its address."""
    from skipstep.app import build_app
    from skipstep.pipelines.ui.limits import Limits
    from skipstep.pipelines.ui.server import launch_settings
    from skipstep.pipelines.ui.studio import Studio

    chosen = Limits(**limits)
    page = build_app(Studio(), folder, chosen)
    settings = launch_settings(chosen)
    _, url, _ = page.launch(**settings, quiet=True, prevent_thread_lock=True)
    try:
        yield page, url
    finally:
        page.close()


def resident() -> float:
    """Return the memory of this process in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE") / 2**20


def call(client: httpx.Client, url: str, endpoint: str, given: list[Any]) -> str:
    """Call an endpoint and return its last event, or the status and the words of a refusal."""
    # json.dumps writes NaN and infinity, which httpx would refuse to send.
    content = json.dumps({"data": given})
    headers = {"content-type": "application/json"}
    address = f"{url}gradio_api/call/{endpoint}"
    begun = client.post(address, content=content, headers=headers)
    if begun.status_code != 200:
        return f"{begun.status_code} {begun.text}"
    event = begun.json()["event_id"]
    return client.get(f"{address}/{event}").text.strip().split("\n\n")[-1]


def picture(seed: int) -> list[Any]:
    """Return what /generate is given for a small picture: all values, as plain HTTP wants them."""
    return ["a sun", "fora", seed, 2, "64", None, "", "reference"]


def measure_load(requests: int, clients: int, bursts: int) -> None:
    """Send all requests at once, again and again."""
    from skipstep.pipelines.ui.server import share_heaps

    share_heaps()
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder)) as (_, url):
        with httpx.Client(timeout=None) as client:
            call(client, url, "generate", picture(0))
        print(f"before          {resident():7.0f} MiB")
        for burst in range(bursts):
            started = threading.Barrier(clients)

            def work(number: int, started: threading.Barrier = started) -> list[str]:
                own = range(number, requests, clients)
                with httpx.Client(timeout=None) as client, ThreadPoolExecutor(len(own)) as pool:
                    started.wait()
                    return list(
                        pool.map(
                            lambda seed: call(client, url, "generate", picture(seed)),
                            own,
                        )
                    )

            with ThreadPoolExecutor(clients) as pool:
                answers = [each for listed in pool.map(work, range(clients)) for each in listed]
            kinds = collections.Counter(kind_of(each) for each in answers)
            told = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
            print(f"burst {burst + 1}: {resident():9.0f} MiB   {told}")


def kind_of(answer: str) -> str:
    """Return what became of a request, in a few words."""
    if answer.startswith("event: complete"):
        return "answered"
    if answer.startswith("event: error"):
        return f"error {answer[20:100]!r}"
    return f"refused with {answer[:80]!r}"


@dataclass
class Opened:
    """The files that this process opens while `is_on`, outside of the roots it may read.

    What is written must be inside `folder`. An audit hook cannot be taken off again, so it sleeps.
    """

    folder: Path
    is_on: bool = False
    read: set[str] = field(default_factory=set)
    written: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        from skipstep import pipelines

        code = Path(str(pipelines.__file__)).resolve().parents[1]
        roots = [sys.prefix, sys.base_prefix, str(code), "/proc", "/sys", "/dev", "/usr/share"]
        self.roots = tuple(str(Path(root).resolve()) for root in roots)
        sys.addaudithook(self.hear)

    def hear(self, event: str, given: tuple[Any, ...]) -> None:
        """Note a file that is opened."""
        if not self.is_on or event != "open" or not isinstance(given[0], str | bytes):
            return
        path = os.path.realpath(os.fsdecode(given[0]))
        mode, flags = given[1], given[2]
        writes = bool(set(mode or "") & set("wax+")) or bool(flags & (os.O_WRONLY | os.O_RDWR))
        if path.startswith((str(self.folder), "/dev/")):
            return
        if writes:
            # Caches of compiled code belong to the interpreter.
            if "__pycache__" not in path:
                self.written.add(path)
        elif not path.startswith((*self.roots, "/etc/mime.types", "/etc/localtime")):
            self.read.add(path)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Note what is opened meanwhile."""
        self.is_on = True
        try:
            yield
        finally:
            self.is_on = False


@dataclass
class Fuzzer:
    """Sends nonsense to every endpoint and event of a page, and keeps what came back as faults.

    Args:
        secret: the path of a file that must not be opened.
    """

    page: Any
    url: str
    secret: Path
    seed: int = 0
    faults: list[str] = field(default_factory=list)
    sent: int = 0

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.client = httpx.Client(timeout=120)
        secret = str(self.secret)
        file = {"path": secret, "meta": {"_type": "gradio.FileData"}}
        self.nonsense: list[Any] = [
            None, True, -1, 0, 1, 3.5, 10**9, -(10**30), 1e308, float("nan"), float("inf"), "", " ",
            "a", "x" * 5000, "\x00", "a\x1b[2J", "\u202egnp.exe", "\ud83d", "null", "[[[[", "{}",
            "/etc/passwd", secret, "../" * 12 + "etc/passwd", "file:///etc/passwd",
            "http://127.0.0.1:9/", "<script>alert(1)</script>", "{{7*7}}", "=cmd()", "CON", "-rf",
            [], {}, [None], ["a"] * 40, [[["a"]]], {"a": {"b": []}}, {"path": secret}, file,
            [file], [{"path": "/etc/passwd"}] * 3, {"url": "http://127.0.0.1:9/a.png"},
            {"path": "http://127.0.0.1:9/a.png", "meta": {"_type": "gradio.FileData"}},
            f'cache:gate={{type: schedule, schedule: "{secret}"}}', f'magcache:ratios="{secret}"',
            "fora:interval=1e9", "9999x9999", "1e3", [1, 2], "fora + fora",
        ]  # fmt: skip
        self.sensible: dict[str, Any] = {
            "prompt": "a sun", "recipe": "fora", "recipes": ["fora"], "prompts": ["a sun"],
            "steps": 2, "size": "64", "seed": 0, "model": "reference", "plugin": "fora",
            "option": "interval", "values": "1, 2", "target": "target_speedup", "value": 1.5,
            "trials": 1, "minutes": 0.05, "name": "fora", "negative": "", "guidance": None,
            "second": "", "second_values": "", "frames": 5, "background": "white",
            "refine_steps": 0,
        }  # fmt: skip

    def value(self, name: str) -> Any:
        """Return something for a parameter, now and then what it is for."""
        if name in self.sensible and self.random.random() < 0.6:
            return self.sensible[name]
        return self.random.choice(self.nonsense)

    def round(self) -> None:
        """Send one request to every named endpoint and to every event of the page."""
        for function in list(self.page.fns.values()):
            if function.fn is None:
                continue
            if function.api_visibility == "public":
                self.endpoint(function)
            else:
                self.event(function)

    def endpoint(self, function: Any) -> None:
        """Call a named endpoint; a fault is any answer without words of ours."""
        names = list(inspect.signature(function.fn).parameters)
        given = [self.value(name) for name in names]
        if self.random.random() < 0.1:
            given = given[: self.random.randrange(len(given) + 1)]
        answer = call(self.client, self.url, function.api_name, given)
        self.sent += 1
        is_words = answer.startswith(("event: complete", "422", "4")) or (
            answer.startswith("event: error") and '"error": null' not in answer
        )
        if answer.strip().endswith("data: null") or "went wrong inside" in answer or not is_words:
            self.faults.append(f"{function.api_name}{given!r:.300} -> {answer!r:.300}")

    def event(self, function: Any) -> None:
        """Start an event of the page as its script does; a fault is a 500 without words."""
        session = f"{self.random.getrandbits(64):x}"
        given = [self.random.choice(self.nonsense) for _ in function.inputs]
        body = {"data": given, "fn_index": function._id, "session_hash": session}
        headers = {"content-type": "application/json"}
        place = "queue/join" if function.queue else "run/predict"
        begun = self.client.post(
            f"{self.url}gradio_api/{place}", content=json.dumps(body), headers=headers
        )
        self.sent += 1
        told = begun.text
        if begun.status_code == 200 and function.queue:
            told = self.client.get(f"{self.url}gradio_api/queue/data?session_hash={session}").text
        if (begun.status_code >= 500 and "error" not in told) or "went wrong inside" in told:
            name = getattr(function.fn, "__name__", "?")
            self.faults.append(f"{name}{given!r:.300} -> {begun.status_code} {told!r:.300}")


def measure_fuzz(rounds: int, seed: int) -> None:
    """Send nonsense and tell what came of it."""
    with tempfile.TemporaryDirectory() as outside, tempfile.TemporaryDirectory() as inside:
        secret = Path(outside, "schedule.json")
        secret.write_text('{"version": 1, "kind": "skipstep-schedule", "steps": 2, "compute": [0]}')
        folder = Path(inside).resolve()
        opened = Opened(folder)
        small: dict[str, Any] = {"pixels": 64 * 64, "steps": 6, "calls": 8, "minutes": 0.1}
        with serving(folder, **small, refine_steps=4, batch_rows=4) as (page, url):
            fuzzer = Fuzzer(page, url, secret, seed)
            fuzzer.round()
            memory = resident()
            with opened.watching():
                for _ in range(rounds):
                    fuzzer.round()
            answer = call(fuzzer.client, url, "generate", picture(0))
            grown = resident() - memory
    print(f"{fuzzer.sent} requests, {len(fuzzer.faults)} faults, {grown:+.0f} MiB")
    print(f"opened elsewhere to read: {sorted(opened.read)}, to write: {sorted(opened.written)}")
    print(f"afterwards generate is {kind_of(answer)}")
    for fault in fuzzer.faults[:20]:
        print(" ", fault)


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    chosen = parser.add_subparsers(dest="what", required=True)
    chosen.add_parser("ready")
    load = chosen.add_parser("load")
    load.add_argument("--requests", type=int, default=50)
    load.add_argument("--clients", type=int, default=8)
    load.add_argument("--bursts", type=int, default=3)
    fuzz = chosen.add_parser("fuzz")
    fuzz.add_argument("--rounds", type=int, default=30)
    fuzz.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if given.what == "ready":
        subprocess.run([sys.executable, "-c", READY], check=True)
    elif given.what == "load":
        measure_load(given.requests, given.clients, given.bursts)
    else:
        measure_fuzz(given.rounds, given.seed)


if __name__ == "__main__":
    main()
