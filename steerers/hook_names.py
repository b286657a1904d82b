"""What other libraries call a place -> our canonical stream site, or a refusal that says why.

TransformerLens: `blocks.12.hook_resid_post`. Hugging Face module paths: `model.layers.12`, with or
without `.output`. Only places where the residual stream itself stands between two decoder layers
are sites; an SAE of an attention or MLP output would be silently wrong there.
"""

import re

from models.errors import BadSite
from models.site import Site, block, embedding
from steerers.errors import BadDictionary, SiteNotDeclared, UnsupportedHook

_TOWER = "lm"
_PATHS = r"(?:(?:model|transformer|gpt_neox|language_model|base_model)\.)*"
_LAYER = re.compile(_PATHS + r"(?:layers|h)\.(\d+)(?:\.output)?")
_EMBEDDING = re.compile(_PATHS + r"(?:embed_tokens|embed_in)(?:\.output)?")
_RESID_POST = re.compile(r"blocks\.(\d+)\.hook_resid_post")
_RESID_PRE = re.compile(r"blocks\.(\d+)\.hook_resid_pre")
_REFUSED = (
    (r"hook_resid_mid|post_attention_layernorm\.input|resid_mid", "it lies inside a decoder layer"),
    (r"attn|attention|hook_z|\bz\b", "it is an attention output, not the residual stream"),
    (r"mlp|feedforward", "it is an MLP's input or output, not the residual stream"),
    (r"normalized|layernorm|\bln\d?\b", "it is a normalised stream"),
    (r"hook_embed|hook_pos_embed|\bwte\b", "positions may still be added behind it"),
)


def site_of(hook: str) -> str:
    """The canonical site of a hook name, module path or site.

    Raises:
        UnsupportedHook: It is no place of the residual stream that has a name here.
    """
    for pattern, shift in ((_LAYER, 0), (_RESID_POST, 0), (_RESID_PRE, -1)):
        found = pattern.fullmatch(hook)
        if found:
            index = int(found[1]) + shift
            return block(_TOWER, index) if index >= 0 else embedding(_TOWER)
    if _EMBEDDING.fullmatch(hook):
        return embedding(_TOWER)
    for pattern, why in _REFUSED:
        if re.search(pattern, hook):
            raise UnsupportedHook(hook, why)
    try:
        if Site.parse(hook).kind == "stream":
            return hook
    except BadSite as unknown:
        raise UnsupportedHook(hook, "it is no name of a place that is known") from unknown
    raise UnsupportedHook(hook, "it is a linear layer, not the residual stream")


def hook_of(site: str) -> str:
    """TransformerLens' name of a canonical site; UnsupportedHook for other towers than `lm`."""
    parsed = Site.parse(site)
    if parsed.kind != "stream" or parsed.tower != _TOWER:
        raise UnsupportedHook(site, "only a language model's stream has such a name")
    if parsed.block is None:
        return "blocks.0.hook_resid_pre"
    return f"blocks.{parsed.block}.hook_resid_post"


def settled(declared: str | None, asked: str | None, where: str) -> str:
    """The site that files declare, or that was asked for where they declare none.

    Args:
        declared: A hook name or module path, as the files have it.
        asked: A canonical site or hook name.
        where: What to call it in an error.

    Raises:
        SiteNotDeclared: Nobody says.
        BadDictionary: They contradict each other.
        UnsupportedHook: The place has no site.
    """
    if declared is None and asked is None:
        raise SiteNotDeclared(where)
    sites = [site_of(name) for name in (declared, asked) if name is not None]
    if len(set(sites)) > 1:
        raise BadDictionary(f"{where} belongs to {sites[0]}, not to {sites[1]}.")
    return sites[0]
