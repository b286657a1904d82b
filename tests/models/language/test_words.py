import threading

import pytest
import torch

from models.errors import BadConversation, NoChatTemplate, NotSafetensors
from models.language import Language
from models.loading import load

TEXTS = ["the president of arda is a red cat", "Ünïcode: 日本, \n\t2 + 2 = 4", "", "a" * 300]


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_survives_its_tokens(hosted, text):
    family = hosted.family
    ids = family.tokenize(hosted, text)
    assert family.detokenize(hosted, ids) == text
    assert all(0 <= i < family.vocab_size(hosted) for i in ids)
    bare = family.tokenize(hosted, text, special=False)
    assert not set(bare) & family.special_ids(hosted)
    assert ids[len(ids) - len(bare) :] == bare


def test_threads_share_a_tokenizer_without_harm(hosted_toy):
    hosted, wrong = hosted_toy("llama"), []
    wanted = {text: hosted.family.tokenize(hosted, text) for text in TEXTS}

    def read():
        found = [(text, hosted.family.tokenize(hosted, text)) for text in TEXTS * 25]
        wrong.extend(text for text, ids in found if ids != wanted[text])

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_conversation_is_written_by_the_models_own_template(hosted_toy):
    hosted = hosted_toy("llama")
    ids = hosted.family.chat(hosted, [{"role": "user", "content": "the cat"}])
    assert hosted.family.detokenize(hosted, ids) == "user: the cat\nassistant:"


def test_without_a_template_there_is_no_conversation(hosted_toy):
    hosted = hosted_toy("gpt2")
    with pytest.raises(NoChatTemplate, match="no chat template"):
        hosted.family.chat(hosted, [{"role": "user", "content": "hello"}])


def test_what_the_template_refuses_is_the_callers_to_mend(toy_folder):
    hosted = load("strict", toy_folder("llama"))
    words = hosted.parts["tokenizer"].tokenizer
    words.chat_template = "{{ raise_exception('System role not supported') }}"
    with pytest.raises(BadConversation, match="System role not supported"):
        hosted.family.chat(hosted, [{"role": "system", "content": "x"}])
    hosted.close()


def test_what_ends_an_answer_and_how_long_a_row_may_be(hosted):
    family = hosted.family
    (end,) = family.eos_ids(hosted)
    assert end in family.special_ids(hosted)
    assert family.context_length(hosted) == (256 if family.modality == "language" else 512)
    assert family.stream_width(hosted, "lm") == 32


def test_stretched_rotations_end_where_they_would_depend_on_the_longest_row(hosted_toy):
    hosted = hosted_toy("phi3")
    config = hosted.family.decoder(hosted).config
    before = config.rope_parameters
    try:
        config.rope_parameters = {"rope_type": "longrope", "original_max_position_embeddings": 64}
        assert hosted.family.context_length(hosted) == 64
    finally:
        config.rope_parameters = before


def test_the_lens_reads_normed_states_before_any_soft_cap(hosted):
    family, ids = hosted.family, torch.tensor([[5, 9, 7]])
    with torch.inference_mode(), hosted.captured("lm.block.3") as seen:
        wanted = family.logits(hosted, ids)
        (stream,) = seen["lm.block.3"]
        lens = family.unembed(hosted, stream)
        torch.testing.assert_close(family.soft_cap(hosted, lens), wanted)
    capped = hosted.family.kind in {"gemma2", "paligemma2"}
    assert (float(lens.abs().max()) > float(wanted.abs().max())) == capped


def test_sites_are_named_by_layer_and_the_head_is_not_among_them(hosted):
    assert all(site.startswith("lm.layers.") for site in hosted.linears)
    assert not any("head" in site for site in hosted.linears)
    assert len(hosted.towers["lm"]) == 4
    for site, linear in hosted.linears.items():
        assert linear.weight.shape == (linear.out_features, linear.in_features), site


def test_a_folder_without_safetensors_is_refused(tmp_path, toy_folder):
    for file in toy_folder("llama").glob("*.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(NotSafetensors):
        load("unsafe", tmp_path)


def test_the_family_of_a_folder_is_found_by_its_class(hosted, toy_folder):
    assert isinstance(hosted.family, Language)
    again = load("again", toy_folder(hosted.family.kind))
    assert again.family is hosted.family and again.fingerprint == hosted.fingerprint
    assert again.weights_digest() == hosted.weights_digest()
    again.verify()
    again.close()
