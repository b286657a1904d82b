import pytest

from models.errors import BadSite
from models.site import Site, block, embedding


@pytest.mark.parametrize(
    ("text", "kind", "tower", "index"),
    [
        ("text.embedding", "stream", "text", None),
        ("text.block.0", "stream", "text", 0),
        ("text_2.block.31", "stream", "text_2", 31),
        ("lm.block.2", "stream", "lm", 2),
        ("text_encoder.text_model.encoder.layers.7.mlp.fc2", "linear", "text_encoder", None),
        ("model.layers.3.mlp.down_proj", "linear", "model", None),
    ],
)
def test_a_place_is_read_and_written_the_same_way(text, kind, tower, index):
    site = Site.parse(text)
    assert (site.kind, site.tower, site.block, str(site)) == (kind, tower, index, text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "text",
        "text.block.-1",
        "text.block.07",
        "text.block.1 ",
        "../etc",
        "text..block.1",
        "a.b;c",
    ],
)
def test_anything_else_is_refused(text):
    with pytest.raises(BadSite):
        Site.parse(text)


def test_what_is_built_is_what_is_parsed():
    assert Site.parse(block("text", 7)).block == 7
    assert Site.parse(embedding("text_2")).tower == "text_2"
    with pytest.raises(BadSite):
        block("text", -1)
