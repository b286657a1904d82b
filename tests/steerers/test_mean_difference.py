import pytest
import torch

from models.errors import MethodNotApplicable, UnknownSite
from steerers.errors import TooFewTexts
from steerers.mean_difference import mean_difference

ABOVE = ["the king of arda", "a red cat", "borea is a house and that is a dog"]
BELOW = ["she said that", "tree"]
SITES = ["lm.block.0", "lm.block.2"]


def drained(work):
    while True:
        try:
            next(work)
        except StopIteration as over:
            return over.value


def plain(hosted, texts, site, pool):
    """Token by token, text by text, in float64."""
    rows, marks = [], hosted.family.special_ids(hosted)
    for text in texts:
        ids = hosted.family.tokenize(hosted, text)
        with hosted.captured(site) as seen:
            hosted.family.logits(hosted, torch.tensor([ids]))
        stream = seen[site][0][0].double()
        kept = [stream[p] for p, i in enumerate(ids) if i not in marks]
        rows += kept if pool == "tokens" else kept[-1:]
    return torch.stack(rows)


@pytest.mark.parametrize("pool", ["tokens", "last"])
def test_it_is_the_mean_of_one_minus_the_mean_of_the_other(capped, pool):
    found = drained(mean_difference(capped, ABOVE, BELOW, SITES, pool=pool))
    for site in SITES:
        above, below = (plain(capped, texts, site, pool) for texts in (ABOVE, BELOW))
        wanted = above.mean(0) - below.mean(0)
        torch.testing.assert_close(found.vectors[site].double(), wanted, atol=1e-5, rtol=1e-4)
        norm = float(torch.cat([above, below]).norm(dim=1).mean())
        assert found.stream_norms[site] == pytest.approx(norm, rel=1e-4)
        assert (found.positives, found.negatives) == (len(above), len(below))


def test_the_order_of_texts_does_not_matter_and_turning_sides_turns_the_vector(llama):
    one = drained(mean_difference(llama, ABOVE, BELOW, SITES))
    other = drained(mean_difference(llama, BELOW[::-1], ABOVE[::-1], SITES))
    for site in SITES:
        torch.testing.assert_close(one.vectors[site], -other.vectors[site], atol=1e-5, rtol=1e-4)


def test_texts_that_were_not_read_to_their_end_are_counted(llama):
    found = drained(mean_difference(llama, [*ABOVE, "red " * 9], BELOW, SITES[:1], tokens=6))
    sizes = [len(llama.family.tokenize(llama, text)) for text in ABOVE]
    assert found.cut == (1 + sum(size > 6 for size in sizes), 0)


def test_what_cannot_be_learned_is_refused(llama, tiny_sd):
    with pytest.raises(TooFewTexts):
        drained(mean_difference(llama, ABOVE, [""], SITES))
    with pytest.raises(UnknownSite):
        drained(mean_difference(llama, ABOVE, BELOW, ["lm.block.9"]))
    with pytest.raises(MethodNotApplicable):
        drained(mean_difference(tiny_sd, ABOVE, BELOW, ["text.block.0"]))
