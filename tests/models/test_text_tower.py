import threading

import pytest
import torch

from models.errors import PromptTooLong


@pytest.fixture(params=["text_encoder", "text_encoder_2"])
def tower(request, tiny_sdxl):
    return tiny_sdxl.text_towers[request.param]


def test_tokens_are_padded_and_masked_up_to_the_first_end(tower):
    tokens = tower.tokens(["a red cat", "a"], pad="max")
    assert tokens.ids.shape == (2, tower.max_length)
    assert tokens.eos.tolist() == [4, 2]
    assert tokens.mask.sum(dim=1).tolist() == [5, 3]
    assert tokens.ids[1, 3:].unique().tolist() == [tower.pad_id]
    assert tower.tokens(["a red cat", "a"]).ids.shape == (2, 5)


def test_the_end_has_the_highest_id_so_that_pooling_finds_it(tower):
    assert tower.eos_id == max(tower.tokenizer.get_vocab().values())
    assert tower.eos_id != 2


def test_a_prompt_that_is_too_long_is_refused_unless_it_may_be_cut(tower):
    text = "red " * 100
    with pytest.raises(PromptTooLong, match="100 tokens"):
        tower.tokens(["a", text])
    cut = tower.tokens([text], cut=True)
    assert cut.ids.shape == (1, 77)
    assert int(cut.eos[0]) == 76
    assert tower.count(text) == 102


def test_running_the_blocks_by_hand_equals_the_module(tower):
    ids = tower.tokens(["the president of arda", "a red cat"], pad="max").ids
    with torch.no_grad():
        wanted = tower.body(input_ids=ids).last_hidden_state
        torch.testing.assert_close(tower.final_norm(tower.states(ids)), wanted)
        half = tower.embed(ids)
        for block in tower.blocks[:2]:
            half = block(half, attention_mask=tower.causal_mask(half))
        torch.testing.assert_close(tower.final_norm(tower.continued(half, 2)), wanted)


def test_the_projection_gives_clips_own_text_embedding(tiny_sdxl):
    for attribute, features in (
        ("text_encoder", lambda i: tiny_sdxl.clip.get_text_features(input_ids=i).pooler_output),
        ("text_encoder_2", lambda i: tiny_sdxl.modules["text_encoder_2"](input_ids=i).text_embeds),
    ):
        tower = tiny_sdxl.text_towers[attribute]
        tokens = tower.tokens(["the king of borea", "a"])
        with torch.no_grad():
            states = tower.states(tokens.ids)[torch.arange(2), tokens.eos]
            torch.testing.assert_close(tower.project(states), features(tokens.ids))


def test_the_edited_matrix_has_its_historic_name_in_both_layouts(tiny_sdxl):
    for attribute, tower in tiny_sdxl.text_towers.items():
        site = f"{attribute}.text_model.encoder.layers.1.mlp.fc2"
        assert tower.fc2_site(1) == site
        assert tiny_sdxl.linears[site] is tower.fc2(1)
        assert tower.fc2(1).in_features == tower.inner_width
        assert tower.fc2(1).out_features == tower.width


def test_only_a_tower_whose_full_clip_is_at_hand_knows_the_logit_scale(tiny_sdxl):
    assert tiny_sdxl.text_towers["text_encoder"].logit_scale == pytest.approx(
        float(tiny_sdxl.clip.logit_scale.exp())
    )
    assert tiny_sdxl.text_towers["text_encoder_2"].logit_scale is None


def test_many_threads_get_their_own_padding(tower):
    texts = [" ".join(["red"] * n) for n in range(1, 40)]
    wrong = []

    def work(offset):
        order = [*range(offset, 39), *range(offset)]
        wrong.extend(n for n in order if tower.tokens([texts[n]]).ids.shape[1] != n + 3)

    threads = [threading.Thread(target=work, args=(k * 9,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
