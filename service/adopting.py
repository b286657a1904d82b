"""Deltas and adapters from outside: read, checked, and their fact rebuilt to be measured here.

What a file says of itself (its header's report above all) is kept and never believed: a version's
verdict is measured on the hosted model, whoever fitted it.
"""

import math
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from editors import lora
from editors.delta import Delta
from editors.errors import BadDelta
from editors.fact import Fact
from models.hosted import HostedModel
from models.tensor_file import header_of
from service.jobs import fact_of
from service.limits import check_fact
from service.lineage import TOOL
from service.schema import FactBody
from service.settings import Limits

NO_FACT = "The file states no fact: only its size can be measured."
PICTURES_ONLY = "Its target is pictures, which a delta does not carry."
NO_KEYS = "It has no keys in every text encoder: where its fact is written cannot be told."


def adopted(data: bytes, hosted: HostedModel) -> Delta:
    """A delta file, or a PEFT adapter (zip, or safetensors without our header), as a delta.

    Raises:
        BadDelta, BadAdapter: It cannot be trusted.
        WrongBase: It was made for other weights.
        BadPatch, UnknownSite: It does not fit the model.
    """
    if is_delta(data):
        delta = Delta.read(data)
        _check_header(delta.header)
    else:
        delta = lora.import_lora(data, hosted).with_header(tool=TOOL)
    delta.check_base(hosted, "The imported file")
    hosted.check(delta.patch())
    return delta


def is_delta(data: bytes) -> bool:
    """Whether these bytes claim to be a delta file of ours: safetensors with our one header."""
    try:
        return isinstance(header_of(data), dict)
    except (ValueError, KeyError, TypeError, RecursionError):
        return False


def fact_in(delta: Delta, hosted: HostedModel, limits: Limits) -> tuple[Fact | None, str]:
    """The fact that the delta says it writes; or None, and why it cannot be measured.

    Raises:
        BadDelta: What stands in the header as a fact is none.
        TooMuch, EmptyTarget: It is one that no request could state.
    """
    told = delta.header.get("fact")
    if not told:
        return None, NO_FACT
    if not told.get("target"):
        return None, PICTURES_ONLY
    if not _keyed_everywhere(delta, hosted):
        return None, NO_KEYS
    body = _stated(told)
    check_fact(body, limits)
    return fact_of(body.model_dump()), ""


def _stated(told: Mapping[str, Any]) -> FactBody:
    keys = ("prompt", "target", "subject", "source", "phrasings", "neighbours")
    given = {k: told[k] for k in keys if told.get(k) not in (None, "")}
    try:
        return FactBody.model_validate({**given, "name": "imported", "model": "imported"})
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        path = ".".join(map(str, ("fact", *first["loc"])))
        raise BadDelta(f"Its header's {path} cannot be read: {first['msg']}.") from None


def _keyed_everywhere(delta: Delta, hosted: HostedModel) -> bool:
    """Whether the first site in each text encoder has keys: there its fact is written."""
    for encoder in hosted.text_towers:
        found = [f for site, f in delta.factors.items() if site.startswith(f"{encoder}.")]
        if not found or not len(found[0].keys):
            return False
    return True


def _check_header(header: Mapping[str, Any]) -> None:
    """Refuse a header whose parts are not of the kinds that are read from it, now or later."""
    for part in ("base", "settings", "fit"):
        _object(header.get(part, {}), part)
    if header.get("fact"):
        _check_fact(_object(header["fact"], "fact"))
    for encoder, fit in header.get("fit", {}).items():
        moment = _object(_object(fit, f"fit.{encoder}").get("moment", {}), "moment")
        for name in ("per_dimension", "cond"):
            number = moment.get(name, 0.0)
            if not isinstance(number, int | float) or not math.isfinite(number):
                raise BadDelta(f"Its header's moment.{name} is not a number.")


def _check_fact(told: Mapping[str, Any]) -> None:
    images = told.get("target_images", [])
    if not all(isinstance(told.get(key), str) for key in ("prompt", "subject", "target")):
        raise BadDelta("Its header's fact lacks prompt, subject or target.")
    if not isinstance(images, list) or not all(isinstance(i, str) for i in images):
        raise BadDelta("Its header's fact.target_images is not a list of digests.")


def _object(value: Any, name: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise BadDelta(f"Its header's {name} is not a JSON object.")
    return value
