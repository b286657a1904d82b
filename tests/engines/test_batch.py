import torch
from hypothesis import given
from hypothesis import strategies as st

from engines.batch import Entry, Place, Texts, assemble, fixed, key_of, packed
from models.family import Conditioning


def test_fixed_rows_keep_their_slots_and_the_width():
    assert fixed([0, 3], 4, guided=True) == ([Place(0, 4), Place(3, 7)], 8)
    assert fixed([3], 4, guided=True) == ([Place(3, 7)], 8)
    assert fixed([2], 4, guided=False) == ([Place(2, None)], 4)


def test_packed_rows_bring_a_negative_only_where_they_have_one():
    places, width = packed([True, False, True])
    assert places == [Place(0, 3), Place(1, None), Place(2, 4)]
    assert width == 8


@given(st.lists(st.booleans(), min_size=1, max_size=20))
def test_packed_places_never_meet_and_few_are_left_empty(guided):
    places, width = packed(guided)
    taken = [p.prompt for p in places] + [p.negative for p in places if p.negative is not None]
    assert sorted(taken) == list(range(len(guided) + sum(guided)))
    assert width in (1, 2, 4, 8) or width % 4 == 0
    assert len(taken) <= width < 2 * len(taken) and (width <= 8 or width - len(taken) < 4)


def entry(value, *, guided, pooled=False):
    def reads(v):
        return Conditioning(torch.full((1, 3, 2), v), torch.full((1, 2), v) if pooled else None)

    return Entry(
        latents=torch.full((1, 4, 2, 2), value),
        timestep=torch.tensor(int(value)),
        conditional=reads(value),
        unconditional=reads(-value) if guided else None,
    )


def test_each_entry_stands_at_its_place_and_nobody_is_zero():
    entries = [entry(5.0, guided=True, pooled=True), entry(7.0, guided=True, pooled=True)]
    places, width = fixed([1, 2], 3, guided=True)
    latents, timesteps = assemble(entries, places, width)
    reads = Texts().of(entries, places, width)
    assert timesteps.tolist() == [0, 5, 7, 0, 5, 7]
    assert latents[:, 0, 0, 0].tolist() == [0, 5, 7, 0, 5, 7]
    assert reads.sequence[:, 0, 0].tolist() == [0, 5, 7, 0, -5, -7]
    assert reads.pooled is not None and reads.pooled[:, 0].tolist() == [0, 5, 7, 0, -5, -7]


def test_texts_are_stacked_anew_only_when_other_rows_stand_there():
    texts, (one, two) = Texts(), (entry(5.0, guided=True), entry(7.0, guided=True))
    places, width = packed([True, True])
    first = texts.of([one, two], places, width)
    later = Entry(
        latents=one.latents + 1,
        timestep=one.timestep - 1,
        conditional=one.conditional,
        unconditional=one.unconditional,
    )
    assert texts.of([later, two], places, width) is first
    assert texts.of([two, one], places, width) is not first
    assert texts.of([one], places[:1], width).sequence[:, 0, 0].tolist() == [5, 0, -5, 0]
    wider = texts.of([one, two], places, width + 4)
    assert wider.sequence.shape[0] == width + 4


def test_rows_with_and_without_guidance_share_a_call_only_where_they_are_packed():
    reads = Conditioning(torch.zeros(1, 3, 2))
    exact = [key_of("exact", (4, 2, 2), reads, guided=g) for g in (True, False)]
    fast = [key_of("fast", (4, 2, 2), reads, guided=g) for g in (True, False)]
    assert exact[0] != exact[1] and fast[0] == fast[1]


def test_another_text_length_or_picture_size_is_another_call():
    keys = {
        key_of("fast", shape, Conditioning(torch.zeros(1, tokens, 2)), guided=True)
        for shape in ((4, 2, 2), (4, 4, 2))
        for tokens in (3, 4)
    }
    assert len(keys) == 4
