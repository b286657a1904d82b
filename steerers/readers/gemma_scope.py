"""Gemma Scope 1 (Lieberum et al. 2024): `params.npz`, JumpReLU, beta 0, no input norm.

The file declares nothing: site, model and L0 are in the names of the repository and its folders,
`google/gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71`. Refused: the attention and MLP
sets, whose sites are not the residual stream, and the transcoders.
"""

import re

from steerers.activation import JumpReLU
from steerers.dictionary import Dictionary
from steerers.hook_names import settled
from steerers.layout import Asked, Reader, declared, refuse, rescaled
from steerers.sources import Source, numbers

FORMAT = "gemma-scope"
_REPOSITORY = re.compile(
    r"gemma-scope-(?P<size>\w+?)-(?P<tuned>pt|it)-(?P<set>res|mlp|att|transcod)"
)
_HOOKS = {"res": "hook_resid_post", "mlp": "hook_mlp_out", "att": "attn.hook_z"}


def matches(source: Source) -> bool:
    """Whether there is one npz file, or a `params.npz`."""
    return source.has("params.npz") or len(source.ending(".npz")) == 1


def read(source: Source, asked: Asked) -> Dictionary:
    """The SAE; the embedding's is rescaled, since it was trained before Gemma's sqrt(d)."""
    path = "/".join(source.parts)
    repository = _REPOSITORY.search(path)
    kind = None if repository is None else repository["set"]
    refuse(asked, (kind == "transcod" or "transcoder" in path, "a transcoder"))
    name = "params.npz" if source.has("params.npz") else source.ending(".npz")[0]
    encoder, bias, decoder, decoder_bias, threshold = numbers(
        source.tensors(name), "W_enc|w_enc", "b_enc", "W_dec|w_dec", "b_dec", "threshold"
    )
    of_embedding = kind == "res" and "embedding" in source.parts
    if of_embedding:
        scale = encoder.shape[0] ** -0.5
        encoder, decoder, decoder_bias = rescaled(scale, encoder, decoder, decoder_bias)
    layer, l0 = re.search(r"layer_(\d+)", path), re.search(r"average_l0_(\d+)", path)
    hook = f"blocks.{layer[1]}.{_HOOKS[kind]}" if layer and kind in _HOOKS else None
    return Dictionary(
        id=asked.id,
        site=settled("lm.embedding" if of_embedding else hook, asked.site, asked.where),
        format=FORMAT,
        encoder=encoder,
        encoder_bias=bias,
        decoder=decoder,
        decoder_bias=decoder_bias,
        activation=JumpReLU(threshold),
        model=asked.model or _model(repository),
        declared=declared(asked, l0=int(l0[1]) if l0 else None),
    )


def _model(repository: re.Match[str] | None) -> str | None:
    if repository is None:
        return None
    return f"google/gemma-2-{repository['size']}{'-it' if repository['tuned'] == 'it' else ''}"


READER = Reader(format=FORMAT, matches=matches, read=read)
