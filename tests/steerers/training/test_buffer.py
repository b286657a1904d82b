import torch

from steerers.training.buffer import Buffer, endless, streams_of
from steerers.training.recipe import Recipe


def numbered(parts, size, sites=("a", "b")):
    """Token n is the number n at one site and 1000 + n at the other."""
    for i in range(parts):
        n = torch.arange(i * size, (i + 1) * size).float()[:, None]
        yield {sites[0]: n, sites[1]: n + 1000}


def test_every_token_comes_once_at_all_sites_together_and_shuffled():
    recipe = Recipe(batch=8, buffer=64, seed=3)
    seen = list(Buffer(numbered(20, 12), recipe).batches())
    assert all(len(b["a"]) == 8 for b in seen) and len(seen) == 240 // 8
    told = torch.cat([b["a"] for b in seen])[:, 0]
    assert sorted(told.tolist()) == list(range(240))
    assert all(torch.equal(b["a"] + 1000, b["b"]) for b in seen)
    first = seen[0]["a"][:, 0].tolist()
    assert first != sorted(first) and max(first) - min(first) > 12  # of several parts


def test_no_more_than_the_buffer_and_one_part_are_held():
    taken = 0

    def counted():
        nonlocal taken
        for part in numbered(50, 12):
            taken += 12
            yield part

    buffer, given = Buffer(counted(), Recipe(batch=8, buffer=64)), 0
    for batch in buffer.batches():
        assert taken - given <= 64 + 12
        given += len(batch["a"])


def test_the_same_seed_gives_the_same_batches():
    def first(seed):
        return next(Buffer(numbered(9, 12), Recipe(batch=8, buffer=64, seed=seed)).batches())["a"]

    assert torch.equal(first(1), first(1)) and not torch.equal(first(1), first(2))


def test_texts_begin_again_behind_those_held_out():
    texts = endless(lambda: ["held", "a", "b"], 1)
    assert [next(texts) for _ in range(5)] == ["a", "b", "a", "b", "a"]
    assert list(endless(lambda: ["held"], 1)) == []


def test_streams_are_the_models_own_without_marks(llama):
    texts = ["the king of arda", "a red cat"]
    sites = ["lm.block.0", "lm.block.2"]
    parts = list(streams_of(llama, texts, sites, 32))
    marks = llama.family.special_ids(llama)
    for site in sites:
        wanted = []
        for text in sorted(texts, key=lambda t: len(llama.family.tokenize(llama, t))):
            ids = llama.family.tokenize(llama, text)
            with llama.captured(site) as seen:
                llama.family.logits(llama, torch.tensor([ids]))
            kept = torch.tensor([i not in marks for i in ids])
            wanted.append(seen[site][0][0][kept])
        torch.testing.assert_close(
            torch.cat([p[site] for p in parts]), torch.cat(wanted), atol=1e-5, rtol=1e-5
        )
