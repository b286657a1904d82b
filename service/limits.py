"""The operator's bounds on one request; each refusal names the key."""

from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import BadRequest, BodyTooLarge, TooManyPictures, TooMuch
from service.problems import answer
from service.schema import EditUse, FactBody, ImageBody
from service.schema_evaluations import DatasetBody
from service.settings import Limits


class Bounded:
    """ASGI: refuses a body beyond the limit, by its announced length or once it has grown there."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self.app, self.limit = app, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request whose body is bounded."""
        read = 0

        async def bounded() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self.limit:
                raise BodyTooLarge(self.limit)
            return message

        announced = Headers(scope=scope).get("content-length", "0") if _is_http(scope) else "0"
        if announced.isdecimal() and int(announced) > self.limit:
            await answer(Request(scope), BodyTooLarge(self.limit))(scope, receive, send)
            return
        await self.app(scope, bounded, send)


def _is_http(scope: Scope) -> bool:
    return scope["type"] == "http"


def check_image(body: ImageBody, limits: Limits) -> None:
    """Refuse a picture request that is larger than the operator allows.

    Raises:
        TooMuch: Naming the key, what was asked and the limit.
    """
    asked: dict[str, tuple[float, float]] = {
        "n": (body.n, limits.images),
        "steps": (body.steps or 0, limits.steps),
        "guidance_scale": (body.guidance_scale or 0, limits.guidance_scale),
        "prompt": (len(body.prompt), limits.prompt_characters),
        "negative_prompt": (len(body.negative_prompt or ""), limits.prompt_characters),
    }
    within(asked)
    check_edits(body.edits, limits)
    height, width = size_of(body.size)
    within({"size": (max(height or 0, width or 0), limits.side)})
    within({"size": ((height or 0) * (width or 0), limits.pixels)})


def check_sweep(layers: int, n: int, limits: Limits) -> None:
    """Refuse a sweep of more pictures than the operator allows."""
    if layers * n > limits.lens_pictures:
        raise TooManyPictures(layers, n, limits.lens_pictures)


def check_edits(edits: Sequence[EditUse], limits: Limits) -> None:
    """Refuse too many edits, or too strong ones."""
    within({"edits": (len(edits), limits.edits)})
    for i, edit in enumerate(edits):
        within({f"edits[{i}].strength": (abs(edit.strength), limits.strength)})


def check_fact(body: FactBody, limits: Limits) -> None:
    """Refuse a fact that is larger than the operator allows, or says nothing to write."""
    longest = max(
        len(t) for t in (body.prompt, body.target or "", body.source or "", *body.neighbours)
    )
    asked: dict[str, tuple[float, float]] = {
        "prompt": (longest, limits.prompt_characters),
        "phrasings": (len(body.phrasings) + len(body.neighbours), limits.phrasings),
        "target_images": (len(body.target_images), limits.target_images),
        "negative_images": (len(body.negative_images), limits.target_images),
    }
    within(asked)
    if body.target is None and not body.target_images:
        raise BadRequest(
            "The fact has no target.",
            remedy="Say what the prompt shall mean: `target`, or `target_images`.",
            param="target",
        )


def check_dataset(body: DatasetBody, limits: Limits) -> None:
    """Refuse rows that could not be looked at within seconds: the request waits for it."""
    sent = {"pairs": body.pairs, "swaps": body.swaps, "rows": body.rows}
    counts = {"n": body.n if body.generator else 0, **{k: len(v) for k, v in sent.items()}}
    within({key: (count, limits.dataset_rows) for key, count in counts.items()})
    for key in sent:
        texts = len(body.model_dump_json(include={key})) if sent[key] else 0
        within({key: (texts, limits.dataset_characters)})


def within(asked: dict[str, tuple[float, float]]) -> None:
    """TooMuch, with the first key whose value is above its limit."""
    for param, (value, limit) in asked.items():
        if value > limit:
            raise TooMuch(param, value, limit)


def size_of(size: str | None) -> tuple[int | None, int | None]:
    """(height, width) of OpenAI's "WIDTHxHEIGHT"; None is the model's own."""
    if size is None or size == "auto":
        return None, None
    width, height = size.split("x")
    return int(height), int(width)


def check_total(edits: int, limits: Limits) -> None:
    """Refuse more edits than allowed, however they were named (variant, model name, list)."""
    within({"edits": (edits, limits.edits)})
