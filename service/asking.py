"""Asking a service for many pictures, as evaluations do: patiently, a few requests at a time."""

import io
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import editors.progress
from evaluation.judge import Picture
from miniature import weights_path
from models.fingerprint import content_digest
from service.client import Tiller, TillerError
from service.running import serving

T = TypeVar("T")
AT_ONCE = 4
"""Requests under way at a time; each asks for several pictures."""
PATIENCE_SECONDS = 120.0
err = Console(stderr=True)


def patiently(ask: Callable[[], T]) -> T:
    """The answer; a busy service is asked again for a while."""
    until = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return ask()
        except TillerError as error:
            if error.status not in (429, 503) or time.monotonic() > until:
                raise
            time.sleep(1.0)


def in_order(asks: Sequence[Callable[[], T]], at_once: int = AT_ONCE) -> Generator[T, None, None]:
    """Every answer in its turn, some asked for ahead; closed, the rest is not asked."""
    with ThreadPoolExecutor(at_once) as pool:
        asked = [pool.submit(patiently, ask) for ask in asks]
        try:
            for answer in asked:
                yield answer.result()
        finally:
            for one in asked:
                one.cancel()


def pixels(png: bytes) -> Picture:
    """A PNG as (height, width, 3) uint8."""
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def drawn_with(tiller: Tiller, model: str, steps: int | None) -> dict[str, Any]:
    """What decides how a model's pictures look, for a journal's header; `steps` if any were told.

    `fingerprint` covers the text encoders, `pipeline` the denoiser and the decoder as well.
    """
    card = tiller.models.show(model)
    told = ("fingerprint", "pipeline", "dtype", "denoiser_dtype", "mode", "guidance_scale")
    return {"model": model, **{key: card[key] for key in told}, "steps": steps or card["steps"]}


def judged_by(folder: Path | None) -> dict[str, str]:
    """Which judge, for a journal's header: a folder of the same name may hold another one."""
    name = "miniature" if folder is None else folder.name
    return {"name": name, "digest": content_digest(folder or weights_path("judge"))}


@contextmanager
def asked_at(
    url: str | None, api_key: str | None, *, ray: bool = False, config: Path | None = None
) -> Iterator[Tiller]:
    """The service at that address, or one that is started for the length of the block."""
    with ExitStack() as stack:
        if url is None:
            home = Path(stack.enter_context(TemporaryDirectory(prefix="tiller-evaluation-")))
            with err.status("starting a service"):
                url = stack.enter_context(serving(home, local=not ray, config=config))
        yield stack.enter_context(Tiller(url, api_key))


def drained(run: Generator[editors.progress.Progress, None, T], total: int) -> T:
    """Run to the end behind two bars: cases, and what is going on in this one."""
    with _bars() as bars:
        whole = bars.add_task("cases", total=total)
        part = bars.add_task("", total=None)
        while True:
            try:
                told = next(run)
            except StopIteration as end:
                return end.value
            about = f"{told.stage} {told.message}"[:60]
            if told.stage == "case":
                bars.update(whole, completed=told.done, description="cases")
                bars.update(part, completed=0, total=None, description=about)
            else:
                bars.update(part, completed=told.done, total=told.total, description=about)


@contextmanager
def _bars() -> Iterator[Progress]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=err, transient=True) as bars:
        yield bars


def evenly(cases: Sequence[T], limit: int | None) -> list[T]:
    """So many of the cases, spread over the file."""
    if limit is None or limit >= len(cases):
        return list(cases)
    return [cases[i * len(cases) // limit] for i in range(limit)]
