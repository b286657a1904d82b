import pytest

from steerers.errors import BadDictionary, SiteNotDeclared, UnsupportedHook
from steerers.hook_names import hook_of, settled, site_of


@pytest.mark.parametrize(
    ("hook", "site"),
    [
        ("blocks.12.hook_resid_post", "lm.block.12"),
        ("blocks.12.hook_resid_pre", "lm.block.11"),
        ("blocks.0.hook_resid_pre", "lm.embedding"),
        ("model.layers.7.output", "lm.block.7"),
        ("model.language_model.layers.7", "lm.block.7"),
        ("layers.0", "lm.block.0"),
        ("gpt_neox.layers.3", "lm.block.3"),
        ("transformer.h.5", "lm.block.5"),
        ("model.embed_tokens", "lm.embedding"),
        ("lm.block.2", "lm.block.2"),
        ("text.block.2", "text.block.2"),
    ],
)
def test_places_of_the_residual_stream_have_one_name(hook, site):
    assert site_of(hook) == site


@pytest.mark.parametrize(
    ("hook", "why"),
    [
        ("blocks.1.hook_resid_mid", "inside a decoder layer"),
        ("blocks.1.hook_mlp_out", "MLP"),
        ("blocks.1.hook_attn_out", "attention"),
        ("blocks.1.attn.hook_z", "attention"),
        ("blocks.1.ln2.hook_normalized", "normalised"),
        ("model.layers.1.pre_feedforward_layernorm.output", "MLP"),
        ("model.layers.1.self_attn.o_proj.input", "attention"),
        ("hook_embed", "positions"),
        ("transformer.wte", "positions"),
        ("blocks.-1.hook_resid_post", "no name"),
        ("lm.block.01", "no name"),
        ("anything", "no name"),
        ("lm.lm_head", "linear layer"),
    ],
)
def test_every_other_place_is_refused_with_its_reason(hook, why):
    with pytest.raises(UnsupportedHook, match=why):
        site_of(hook)


@pytest.mark.parametrize("site", ["lm.block.0", "lm.block.17", "lm.embedding"])
def test_names_lead_back(site):
    assert site_of(hook_of(site)) == site


def test_declared_and_asked_must_agree():
    assert settled("layers.3", "lm.block.3", "x") == "lm.block.3"
    assert settled(None, "layers.3", "x") == settled("layers.3", None, "x") == "lm.block.3"
    with pytest.raises(SiteNotDeclared):
        settled(None, None, "x")
    with pytest.raises(BadDictionary, match="not to"):
        settled("layers.3", "layers.4", "x")
