"""EleutherAI's sparsify: `cfg.json` with `sae.safetensors`; the folder's name is the module path.

TopK behind a ReLU, beta 1. `num_latents` 0 means width times `expansion_factor`. Refused by name:
transcoders, skip connections, groupmax, signed codes.
"""

from steerers.activation import TopK
from steerers.dictionary import Dictionary
from steerers.errors import BadDictionary
from steerers.hook_names import settled
from steerers.layout import Asked, Reader, declared, refuse
from steerers.sources import Source, numbers

FORMAT = "sparsify"


def matches(source: Source) -> bool:
    """Whether there are a `cfg.json` and `sae.safetensors`."""
    return source.has("cfg.json", "sae.safetensors")


def read(source: Source, asked: Asked) -> Dictionary:
    """The SAE."""
    config = source.json("cfg.json")
    tensors = source.tensors("sae.safetensors")
    activation = config.get("activation", "topk")
    refuse(
        asked,
        (config.get("transcode"), "a transcoder"),
        (config.get("skip_connection") or "W_skip" in tensors, "a skip connection"),
        (activation != "topk", f"activation {activation!r}"),
        (config.get("signed"), "signed codes"),
    )
    encoder, bias, decoder, decoder_bias = numbers(
        tensors, "encoder.weight", "encoder.bias", "W_dec", "b_dec"
    )
    features = config.get("num_latents") or config["d_in"] * config.get("expansion_factor", 32)
    if encoder.shape != (features, config["d_in"]):
        raise BadDictionary(f"encoder.weight has shape {tuple(encoder.shape)}, not as in cfg.json.")
    named = source.folder.name if source.only is None and not asked.site else None
    return Dictionary(
        id=asked.id,
        site=settled(named, asked.site, asked.where),
        format=FORMAT,
        encoder=encoder.T,
        encoder_bias=bias,
        decoder=decoder,
        decoder_bias=decoder_bias,
        activation=TopK(int(config["k"])),
        subtracts_decoder_bias=True,
        model=asked.model,
        declared=declared(asked),
    )


READER = Reader(format=FORMAT, matches=matches, read=read)
