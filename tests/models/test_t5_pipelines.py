"""What holds for every family that T5 reads for, whichever there are."""

import json

import pytest
import sentencepiece
import torch
from transformers import T5EncoderModel

from models.errors import MethodNotApplicable, PromptTooLong, UnsafeDtype
from models.family import FAMILIES
from models.fingerprint import canonical, fingerprint
from models.loading import load
from models.patch import LowRank, Patch, Shift
from models.t5_pipelines import Reader, T5Pipeline
from models.toys import toy_tokenizer
from models.toys_t5 import toy_t5, toy_t5_tokenizer

PROMPT, OTHER = "a photo of the president of arda", "a red cat"
KINDS = sorted(kind for kind, family in FAMILIES.items() if isinstance(family, T5Pipeline))


@pytest.fixture(scope="module")
def t5_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("t5")
    toy_t5(toy_t5_tokenizer(folder), 0).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=KINDS)
def hosted(request, tmp_path_factory):
    family = FAMILIES[request.param]
    hosted = load("tiny", family.tiny(tmp_path_factory.mktemp(family.kind) / "toy"))
    yield hosted
    hosted.close()


def plain_states(hosted, prompts):
    """Every state of a T5 that no hook has touched, and its final norm."""
    family = hosted.family
    encoder = T5EncoderModel.from_pretrained(hosted.path / family.t5)
    encoder.eval()
    tokens = family.tokens(hosted, family.t5, prompts)
    mask = tokens.mask if family.masked else None
    with torch.no_grad():
        read = encoder(tokens.ids, attention_mask=mask, output_hidden_states=True)
        normed = [encoder.encoder.final_layer_norm(state) for state in read.hidden_states[:-1]]
    return [*normed, read.hidden_states[-1]]


def t5_part(hosted, conditioning):
    """T5's part of the sequence stands behind the CLIPs'."""
    return conditioning.sequence[:, -hosted.family.prompt_limit(hosted) :]


def test_the_lens_is_the_pipelines_own_reading_of_every_hidden_state(hosted):
    lens = hosted.family.lens(hosted)
    wanted = plain_states(hosted, [PROMPT])
    assert lens.ordinary == len(wanted) - 1 == 4
    for layer, states in enumerate(wanted):
        found = hosted.family.encode(hosted, [PROMPT], [lens.exit(layer)])
        torch.testing.assert_close(t5_part(hosted, found), states, atol=1e-4, rtol=0)


def test_rows_at_different_layers_share_a_pass_and_a_plain_row_is_unchanged(hosted):
    family, lens = hosted.family, hosted.family.lens(hosted)
    patches = [lens.exit(0), Patch(), lens.exit(3), lens.exit(1)]
    prompts = [PROMPT, OTHER, PROMPT, OTHER]
    found = family.encode(hosted, prompts, patches)
    plain = family.encode(hosted, prompts, [Patch()] * 4)
    for row, layer in ((0, 0), (2, 3), (3, 1)):
        wanted = plain_states(hosted, [prompts[row]])[layer]
        torch.testing.assert_close(t5_part(hosted, found.row(row)), wanted, atol=1e-4, rtol=0)
    assert torch.equal(found.sequence[1], plain.sequence[1])
    if found.pooled is not None and plain.pooled is not None:
        assert torch.equal(found.pooled[1], plain.pooled[1])


def test_beside_a_left_t5_nothing_says_the_prompt_unless_asked(hosted):
    family, lens = hosted.family, hosted.family.lens(hosted)
    leave = lens.exit(2)
    blank, full = (family.encode(hosted, [PROMPT], [leave], [b]) for b in ("blank", "full"))
    nothing, whole = (family.encode(hosted, [text], [Patch()]) for text in ("", PROMPT))
    length = family.prompt_limit(hosted)
    assert torch.equal(t5_part(hosted, blank), t5_part(hosted, full))
    assert torch.equal(blank.sequence[:, :-length], nothing.sequence[:, :-length])
    assert torch.equal(full.sequence[:, :-length], whole.sequence[:, :-length])
    if nothing.pooled is not None and whole.pooled is not None:
        assert torch.equal(blank.pooled, nothing.pooled)
        assert torch.equal(full.pooled, whole.pooled)
    assert bool(lens.beside) == (nothing.pooled is not None)


def test_the_lens_looks_at_no_clip(hosted):
    for tower in hosted.towers:
        if tower != hosted.family.towers[hosted.family.t5]:
            with pytest.raises(MethodNotApplicable, match="T5 only"):
                hosted.family.lens(hosted, tower)


def test_a_change_of_one_tower_counts_its_own_tokens(hosted):
    family, tower = hosted.family, hosted.family.towers[hosted.family.t5]
    width, length = family.stream_width(hosted, tower), family.prompt_limit(hosted)
    shift = Shift(site=f"{tower}.block.1", vector=torch.ones(width))
    last = Shift(site=f"{tower}.block.2", vector=torch.ones(width), positions="last")
    with hosted.tallied() as runs:
        family.encode(hosted, [OTHER, OTHER], [Patch((shift, last)), Patch()])
    assert sum(run.tokens_changed(0) for run in runs) == length + 1
    assert sum(run.tokens_changed(1) for run in runs) == 0


def test_a_change_at_t5s_historic_path_is_as_if_its_weights_were_changed(hosted):
    family = hosted.family
    site = f"{family.t5}.encoder.block.1.layer.1.DenseReluDense.wo"
    layer = hosted.linears[site]
    generator = torch.Generator().manual_seed(1)
    left = torch.randn(layer.out_features, 1, generator=generator)
    right = torch.randn(1, layer.in_features, generator=generator)
    found = family.encode(hosted, [OTHER], [Patch((LowRank(site=site, left=left, right=right),))])
    plain = family.encode(hosted, [OTHER], [Patch()])
    before = layer.weight.data
    layer.weight.data = before + left @ right
    wanted = family.encode(hosted, [OTHER], [Patch()])
    layer.weight.data = before
    torch.testing.assert_close(found.sequence, wanted.sequence, atol=1e-4, rtol=1e-4)
    assert float((found.sequence - plain.sequence).abs().max()) > 0.1


def test_a_prompt_is_never_cut_in_silence(hosted):
    family, limit = hosted.family, hosted.family.prompt_limit(hosted)
    assert family.token_count(hosted, "a red cat") == 4
    fits, long = "red " * (limit - 1), "red " * limit
    family.check_prompt(hosted, fits)
    with pytest.raises(PromptTooLong, match=f"{limit} tokens"):
        family.check_prompt(hosted, long)
    with pytest.raises(PromptTooLong):
        family.encode(hosted, [long], [Patch()])


def test_float16_is_refused_and_bfloat16_loads_whole(hosted):
    with pytest.raises(UnsafeDtype, match="overflows"):
        load("half", hosted.path, dtype="float16")
    brain = load("brain", hosted.path, dtype="bfloat16")
    dtypes = {p.dtype for m in brain.modules.values() for p in m.parameters()}
    assert dtypes == {torch.bfloat16}
    assert brain.fingerprint == hosted.fingerprint
    conditioning = brain.family.encode(brain, [PROMPT], [Patch()])
    assert conditioning.sequence.dtype == torch.bfloat16
    whole = hosted.family.encode(hosted, [PROMPT], [Patch()])
    torch.testing.assert_close(conditioning.sequence.float(), whole.sequence, atol=0.3, rtol=0.1)
    brain.close()


def test_the_reader_gives_the_ids_of_the_pipelines_call(tmp_path):
    texts = ["a red cat", "", "Zebra, (99)!", "red " * 400, "a </s> in it"]
    for tokenizer in (toy_t5_tokenizer(tmp_path / "t5"), toy_tokenizer(tmp_path / "clip", pad="!")):
        found = Reader(tokenizer=tokenizer, length=77, cuts=True).tokens(texts)
        theirs = tokenizer(
            texts, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
        )
        assert torch.equal(found.ids, theirs.input_ids)
        assert torch.equal(found.mask, theirs.attention_mask)


def test_a_toys_tokenizer_is_the_same_when_it_is_loaded_again(tmp_path):
    tokenizer = toy_t5_tokenizer(tmp_path / "t5")
    again = type(tokenizer).from_pretrained(tmp_path / "t5")
    text = "a Photo of, the king! é"
    assert again(text).input_ids == tokenizer(text).input_ids
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (0, 1, 2)


def test_t5s_tensors_keep_their_names_and_its_tied_ones_are_one():
    wo = "encoder.block.3.layer.1.DenseReluDense.wo.weight"
    assert canonical(wo) == wo
    assert canonical("encoder.final_layer_norm.weight") == "encoder.final_layer_norm.weight"
    assert canonical("encoder.embed_tokens.weight") == canonical("shared.weight")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_heads", 2),
        ("d_kv", 16),
        ("feed_forward_proj", "gated-relu"),
        ("relative_attention_num_buckets", 4),
        ("relative_attention_max_distance", 32),
        ("layer_norm_epsilon", 1e-3),
    ],
)
def test_the_fingerprint_covers_what_t5_computes(t5_folder, key, value):
    config = t5_folder / "config.json"
    before, stated = fingerprint(t5_folder), config.read_text()
    assert json.loads(stated)[key] != value
    config.write_text(json.dumps(json.loads(stated) | {key: value}))
    after = fingerprint(t5_folder)
    config.write_text(stated)
    assert after != before == fingerprint(t5_folder)


def test_a_published_folder_with_a_sentencepiece_model_only_is_read(tmp_path):
    family = FAMILIES["pixart_sigma"]
    folder = family.tiny(tmp_path / "toy")
    words = tmp_path / "words.txt"
    words.write_text("\n".join([PROMPT, OTHER, "the king of borea in a house"] * 20))
    settings = {"vocab_size": 60, "pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
    published = folder / "tokenizer"
    for file in published.iterdir():
        file.unlink()
    sentencepiece.SentencePieceTrainer.train(
        input=str(words), model_prefix=str(published / "spiece"), minloglevel=2,
        hard_vocab_limit=False, **settings,
    )  # fmt: skip
    (published / "spiece.vocab").unlink()
    stated = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0}
    (published / "tokenizer_config.json").write_text(json.dumps(stated))
    hosted = load("published", folder)
    found = hosted.family.tokens(hosted, family.t5, [OTHER]).ids[0].tolist()
    model = sentencepiece.SentencePieceProcessor(model_file=str(published / "spiece.model"))
    spoken = model.encode(OTHER)
    assert found[: len(spoken) + 1] == [*spoken, 1]
    hosted.close()
