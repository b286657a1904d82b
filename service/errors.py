"""What floor 3 refuses, besides what the registry does."""

from collections.abc import Mapping, Sequence

from models.errors import Refusal
from service.phrases import short


class BadRequest(Refusal):
    """A request body, query or header that cannot be read as asked."""

    def __init__(self, problem: str, *, remedy: str, param: str | None = None) -> None:
        super().__init__(problem, remedy=remedy, param=param)


class UnknownKey(Refusal):
    """A key that no request of this kind has: a typo must never mean "silently unedited"."""

    def __init__(self, path: str) -> None:
        super().__init__(
            f"There is no key {path!r} here.",
            remedy="Check its spelling; GET /openapi.json lists every key.",
            param=path,
        )


class SentTwice(Refusal):
    """One key, field or query twice in one request: only one of them could count."""

    def __init__(self, key: str) -> None:
        super().__init__(
            f"{key[:100]!r} is there twice; only one of them could count.",
            remedy="Send it once.",
            param=key[:100],
        )


class LiteralExtraBody(Refusal):
    """`extra_body` reached the wire: it is an argument of the SDK, not a key of the API."""

    def __init__(self) -> None:
        super().__init__(
            "`extra_body` is an argument of the OpenAI SDK; over the wire it would change nothing.",
            remedy="Write its contents (edits, seed, steps, ...) as top-level keys.",
            param="extra_body",
        )


class NotOffered(Refusal):
    """A key of OpenAI's API that hosted models, or the one that is asked, cannot honour."""

    def __init__(self, param: str, reason: str) -> None:
        super().__init__(f"{param!r} is not offered: {reason}", remedy="Leave it out.", param=param)


class TooMuch(Refusal):
    """A number above the limit that the operator set."""

    def __init__(self, param: str, asked: float, limit: float, why: str = "") -> None:
        allowed = short(limit)
        super().__init__(
            f"{param} is {short(asked)}; this service allows {allowed}{why}.",
            remedy=f"Ask for {allowed} or less; the operator sets limits in the configuration.",
            param=param,
        )


class TooManyPictures(Refusal):
    """A sweep of the lens over more pictures than the operator allows."""

    def __init__(self, layers: int, n: int, limit: int) -> None:
        super().__init__(
            f"{layers} layers with {n} seeds each are {layers * n} pictures; "
            f"this service allows {limit}.",
            remedy=f"Name fewer layers or seeds: layers times n at most {limit}.",
            param="layers",
        )


class BodyTooLarge(Refusal):
    """A body longer than the operator allows; it was not read."""

    def __init__(self, limit: int) -> None:
        super().__init__(
            f"The body is longer than {limit} bytes.",
            remedy="Send less; the operator sets limits.body_bytes.",
        )


class UnreadableBody(Refusal):
    """A body that is no JSON text: other bytes than UTF-8, or nested beyond reading."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem, remedy="Send one JSON object, as UTF-8.")


class NotFound(Refusal):
    """No such path."""

    def __init__(self, path: str, openai: Sequence[str] = ()) -> None:
        there = f"Of OpenAI's API there are {', '.join(openai)}. " if openai else ""
        super().__init__(
            f"There is nothing at {path[:200]}.",
            remedy=f"{there}GET /openapi.json lists all paths.",
        )


class MethodNotAllowed(Refusal):
    """The path exists, the verb does not."""

    def __init__(self, method: str, path: str, allowed: Sequence[str]) -> None:
        takes = ", ".join(allowed)
        super().__init__(f"{path[:200]} does not take {method}.", remedy=f"It takes {takes}.")
        self.allow = takes


class UnknownModel(Refusal):
    """No hosted model and no variant has this name."""

    def __init__(self, name: str, known: str, base: str = "") -> None:
        """`base`: the model that the name changes, where models are read as they are."""
        problem = f"There is no model {name!r}."
        remedy = f"GET /v1/models lists: {known}."
        if base:
            problem = f"{name!r} is {base} with changes, and here a model is read as it is."
            remedy = f"Name {base}."
        super().__init__(problem, remedy=remedy, param="model")


class WrongModel(Refusal):
    """An edit, preset or vector made for one model is asked for on another."""

    def __init__(
        self, name: str, made_for: str, model: str, kind: str = "edit", param: str = "edits"
    ) -> None:
        anew = {"edit": "register or import it", "steering": "put the preset", "vector": "learn it"}
        super().__init__(
            f"{name} was made for {made_for}, not for {model}.",
            remedy=f"Use model={made_for!r}, or {anew.get(kind, 'make it')} for {model}.",
            param=param,
        )


class FactConflict(Refusal):
    """A live edit says something else of the same subject, and the request does not replace it."""

    def __init__(self, overlaps: Mapping[str, float]) -> None:
        names = ", ".join(f"{name} (key overlap {rho:.2f})" for name, rho in overlaps.items())
        asked = ", ".join(repr(name.partition("@")[0]) for name in overlaps)
        super().__init__(
            f"The same subject has another target in {names}.",
            remedy=f"Name what it replaces (`replaces`: {asked}), make it a new version of that "
            "edit, or retire the other one.",
            param="replaces",
        )


class NotReplaceable(Refusal):
    """A digest where the name of an edit is needed."""

    def __init__(self, text: str) -> None:
        super().__init__(
            f"{text[:80]!r} is not the name of an edit.",
            remedy="Write potus, potus@3 or potus@live.",
            param="replaces",
        )


class WrongKind(Refusal):
    """A name of one kind where another is needed: a preset among the edits, say."""

    def __init__(self, name: str, kind: str, param: str) -> None:
        places = {
            "edit": "`edits`, or in the model's name",
            "steering": "`steering.preset`, or in the model's name",
            "vector": "`steering.vectors`, or in the model's name",
        }
        super().__init__(
            f"{name} is of the kind {kind!r}.",
            remedy=f"It goes into {places.get(kind, 'another endpoint')}.",
            param=param,
        )


class PresetStrength(Refusal):
    """A strength for a preset, which has its own."""

    def __init__(self, name: str, param: str = "edits") -> None:
        super().__init__(
            f"{name} is a steering preset: its strengths are its own.",
            remedy="Leave the strength out, or make a version of the preset with other strengths.",
            param=param,
        )


class WrongModality(Refusal):
    """A request that this kind of model has no answer to: text from a picture model, say."""

    def __init__(self, model: str, modality: str, wanted: str) -> None:
        super().__init__(
            f"{model} is a {modality} model.",
            remedy=f"Name a {wanted} model: GET /v1/models tells each one's `modality`.",
            param="model",
        )


class BadSteering(Refusal):
    """Keys of `steering` that do not go together."""

    def __init__(self, problem: str, *, remedy: str, param: str) -> None:
        super().__init__(problem, remedy=remedy, param=param)


class LensUnderWay(Refusal):
    """The lens of a dictionary is being computed for the first time."""

    def __init__(self, sae: str) -> None:
        super().__init__(
            f"What the features of {sae} promote is being computed; it takes a while the first "
            "time.",
            remedy="Ask again later, or follow a scores job: POST /v1/saes/{id}/scores.",
            param="sae",
        )
        self.retry_after = 30.0


class EditTwice(Refusal):
    """One edit named twice in one request, perhaps under two names."""

    def __init__(self, first: str, second: str, param: str = "edits") -> None:
        super().__init__(
            f"{first} and {second} are the same version.",
            remedy="Name it once and set its strength.",
            param=param,
        )


class NamedTwice(Refusal):
    """A preset, or a vector by its mere name, that one request names twice."""

    def __init__(self, name: str, param: str) -> None:
        super().__init__(
            f"{name} is named twice.",
            remedy="Name it once, in the model's name or in `steering`; a stronger one is another "
            "version of a preset, or a strength of a vector.",
            param=param,
        )


class UnknownMethod(Refusal):
    """No editor of this kind is installed."""

    def __init__(self, method: str, known: str) -> None:
        problem, remedy = f"There is no method {method!r}.", f"Use one of: {known}."
        if method == "lora":
            problem = "A LoRA is not fitted here, it is imported."
            remedy = f"POST /v1/edits/import takes a PEFT adapter as zip; to fit, use: {known}."
        super().__init__(problem, remedy=remedy, param="method")


class KeyNeeded(Refusal):
    """The service is run with API keys and the request brings none that is valid."""

    def __init__(self, problem: str) -> None:
        super().__init__(
            problem,
            remedy="Send `Authorization: Bearer sk_...`; an operator makes keys with "
            "`tiller keys create`.",
        )


class ScopeMissing(Refusal):
    """The key is valid and may not do this."""

    def __init__(self, scope: str) -> None:
        super().__init__(
            f"The API key lacks the scope {scope!r}.",
            remedy=f"Use a key with the scope {scope!r}.",
        )


class QuotaUsed(Refusal):
    """The key has used what it may use in this minute."""

    def __init__(self, what: str, limit: int, retry_after: float) -> None:
        super().__init__(
            f"The key may use {limit} {what} a minute.",
            remedy=f"Try again in {retry_after:.0f} seconds.",
        )
        self.what, self.limit, self.retry_after = what, limit, retry_after


class StrangeHost(Refusal):
    """A keyless service was addressed by a name that is not its own (DNS rebinding)."""

    def __init__(self, host: str) -> None:
        super().__init__(
            f"This service runs without keys and does not answer to the name {host!r}.",
            remedy="Call it as 127.0.0.1 or localhost, or add the name to server.allowed_hosts.",
        )


class StrangeOrigin(Refusal):
    """A page of another site asks a keyless service to change something."""

    def __init__(self, origin: str) -> None:
        super().__init__(
            f"This service runs without keys and takes nothing from pages of {origin[:200]!r}.",
            remedy="Call it from a program, or add the page's origin to server.allowed_origins.",
        )


class OpenDoor(Refusal):
    """Listening beyond loopback without keys: the service does not start."""

    def __init__(self, host: str) -> None:
        super().__init__(
            f"Listening on {host} without API keys would open the service to everybody.",
            remedy="Make a key first (`tiller keys create --name me`), or listen on 127.0.0.1.",
        )


class BadSettings(Refusal):
    """A configuration that cannot be used; the service does not start."""

    def __init__(self, where: str, problem: str) -> None:
        super().__init__(
            f"{where}: {problem}", remedy="docs/settings.md lists every setting and its default."
        )


class NotReady(Refusal):
    """The model is still being loaded."""

    def __init__(self, model: str) -> None:
        super().__init__(f"{model} is still being loaded.", remedy="Try again in a few seconds.")
        self.retry_after = 2.0


class ShuttingDown(Refusal):
    """The service no longer admits work; what is under way is finished."""

    def __init__(self) -> None:
        super().__init__(
            "The service is shutting down.", remedy="Try again in a moment, elsewhere if you can."
        )
        self.retry_after = 5.0


class HostLost(Refusal):
    """The process that runs the model died or does not answer."""

    def __init__(self, model: str) -> None:
        super().__init__(
            f"The process that hosts {model} was lost; it is being restarted.",
            remedy="Try again in a few seconds.",
        )
        self.retry_after = 3.0


class PictureGone(Refusal):
    """A picture's address that has expired or never was."""

    def __init__(self) -> None:
        super().__init__(
            "The picture is no longer here.", remedy="Draw it again; the same seed draws the same."
        )


class MoreThanOnePicture(Refusal):
    """`Accept: image/png` can carry one picture only."""

    def __init__(self, n: int) -> None:
        super().__init__(
            f"`Accept: image/png` answers with one picture, n is {n}.",
            remedy="Set n to 1 or accept application/json.",
            param="n",
        )


class NotAnImage(Refusal):
    """A picture that does not decode: of another kind, cut off, or broken."""

    def __init__(self, param: str) -> None:
        super().__init__(
            f"{param} is not a picture.",
            remedy="Send PNG, JPEG or WebP as data:image/png;base64,...",
            param=param,
        )


class BadPicture(Refusal):
    """A picture that is one, or says so, and is not looked at: it moves, or no model would."""

    def __init__(self, param: str, why: str) -> None:
        super().__init__(
            f"{param} is not looked at: {why}.",
            remedy="Send one still PNG, JPEG or WebP as data:image/png;base64,..., resized to what "
            "the model needs.",
            param=param,
        )


class PictureOutOfReach(Refusal):
    """The address of a picture that this service may not or cannot fetch."""

    def __init__(self, param: str, why: str) -> None:
        super().__init__(
            f"The picture at {param} is not fetched: {why}.",
            remedy="Send the picture itself as data:image/png;base64,...; the operator sets "
            "remote.hosts.",
            param=param,
        )


class NoBackPatch(Refusal):
    """A preset that steers, where a plan of back-patching is needed."""

    def __init__(self, name: str, param: str) -> None:
        super().__init__(
            f"{name} is a preset that steers; it has no plan of back-patching.",
            remedy="Name it as `steering.preset`; GET /v1/presets lists others.",
            param=param,
        )


class BackPatchTwice(Refusal):
    """Two plans of back-patching for one answer."""

    def __init__(self, one: str, other: str, param: str) -> None:
        super().__init__(
            f"{one} and {other} are two plans of back-patching; an answer carries one.",
            remedy="Leave one out, or write both as `pairs` of one plan.",
            param=param,
        )


class Crashed(Refusal):
    """A fault of ours: the traceback is in our log, under the request's id."""

    def __init__(self) -> None:
        super().__init__(
            "The service made a mistake.",
            remedy="Report it with the X-Request-Id of this answer.",
        )


class NameTaken(Refusal):
    """A variant would hide a hosted model."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"{name!r} is the name of a hosted model.", remedy="Choose another name.", param="name"
        )


class PortTaken(Refusal):
    """The address cannot be listened on; the service does not start."""

    def __init__(self, address: str) -> None:
        super().__init__(
            f"Cannot listen on {address}.",
            remedy="Another service may run there; choose another with --port.",
        )


class NoRecipe(Refusal):
    """A picture that does not say how it was drawn cannot be drawn again."""

    def __init__(self, why: str) -> None:
        super().__init__(
            f"The picture does not say how it was drawn. {why}",
            remedy="Use the file as the service gave it; `picture_metadata` may be off there.",
        )


class SeenThroughLens(Refusal):
    """A picture of a layer of a text encoder is not drawn again as an ordinary one."""

    def __init__(self, layer: int, encoder: str, seed: int) -> None:
        super().__init__(
            f"The picture shows layer {layer} of the text encoder {encoder}.",
            remedy=f"Look again: tiller lens --layers {layer} --encoder {encoder} --seed {seed}.",
        )


class OtherWeights(Refusal):
    """A picture of other weights than those that are hosted now."""

    def __init__(self, model: str, differences: str) -> None:
        super().__init__(
            f"The picture was drawn by other weights than {model} has here. {differences}",
            remedy="Host those weights, name their model, or force it to see another picture.",
        )


class ClientLeft(Refusal):
    """The caller hung up; its rows are free again. Seen in logs only."""

    def __init__(self) -> None:
        super().__init__("The client left before the answer.", remedy="Wait for it next time.")
