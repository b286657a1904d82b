import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

from evaluation.errors import NotAJudge, UnreadableCases
from evaluation.lens import Question
from evaluation.zero_shot import ClipJudge, ClipLensJudge

WORDS = ["a", "red", "blue", "mug", "frog"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small random CLIP of the real class, with a tokenizer that knows five words."""
    where = tmp_path_factory.mktemp("judge")
    vocabulary = {w: i for i, w in enumerate(["[PAD]", "[UNK]", "[BOS]", *WORDS, "[EOS]"])}
    eos = vocabulary["[EOS]"]
    tokens = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))  # noqa: S106
    tokens.pre_tokenizer = pre_tokenizers.Whitespace()
    tokens.post_processor = processors.TemplateProcessing(
        single="[BOS] $A [EOS]", special_tokens=[("[BOS]", 2), ("[EOS]", eos)]
    )
    special = {"pad_token": "[PAD]", "eos_token": "[EOS]"}
    PreTrainedTokenizerFast(
        tokenizer_object=tokens, model_max_length=16, **special
    ).save_pretrained(where)
    torch.manual_seed(0)
    text = {
        "vocab_size": len(vocabulary),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 16,
        "eos_token_id": eos,
        "bos_token_id": 2,
        "pad_token_id": 0,
    }
    vision = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 8,
    }
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    CLIPModel(config).save_pretrained(where)
    return where


PICTURES = np.random.default_rng(0).integers(0, 255, (5, 20, 20, 3), dtype=np.uint8)


def test_the_clip_judge_is_the_models_own_softmax_over_two_texts(folder):
    judge = ClipJudge(folder, rows=2)
    answers = [("a red mug", "a blue mug"), ("a frog", "a mug")] * 2 + [("red", "blue")]
    found = judge(list(PICTURES), answers)
    for picture, pair, verdict in zip(PICTURES, answers, found, strict=True):
        pixels = judge.processor(images=[picture], return_tensors="pt")["pixel_values"]
        logits = []
        for text in pair:
            ids = judge.tokenizer([text], return_tensors="pt").input_ids
            with torch.no_grad():
                out = judge.model(input_ids=ids, pixel_values=pixels)
            logits.append(out.logits_per_image[0, 0])
        wanted = torch.stack(logits).softmax(-1).tolist()
        assert [verdict.probabilities[t] for t in pair] == pytest.approx(wanted, abs=1e-5)
        assert verdict.best == pair[int(wanted[1] > wanted[0])]


def test_swapping_the_answers_does_not_change_who_wins(folder):
    judge = ClipJudge(folder)
    one = judge(list(PICTURES), [("a frog", "a red mug")] * 5)
    two = judge(list(PICTURES), [("a red mug", "a frog")] * 5)
    assert [v.best for v in one] == [v.best for v in two]


def test_a_folder_without_a_clip_is_refused(tmp_path):
    with pytest.raises(NotAJudge):
        ClipJudge(tmp_path)


def test_the_lens_is_answered_from_a_questions_own_options(folder):
    clip = ClipJudge(folder)
    texts = ("a red mug", "a blue mug", "a frog")
    question = Question(question="object", right="a frog", options=texts)
    found = ClipLensJudge(clip)(list(PICTURES), [question] * 5)
    for verdict, wanted in zip(found, clip.choose(list(PICTURES), [texts] * 5), strict=True):
        assert verdict == wanted and verdict.best in texts
        assert sum(verdict.probabilities.values()) == pytest.approx(1.0)


def test_a_question_about_a_side_is_asked_of_that_half(folder):
    clip = ClipJudge(folder)
    texts = ("a red mug", "a frog")
    left = Question(question="object", right="a frog", options=texts, place="left")
    [found] = ClipLensJudge(clip)([PICTURES[0]], [left])
    [half] = clip.choose([np.ascontiguousarray(PICTURES[0][:, :10])], [texts])
    assert found == half


def test_a_question_without_options_is_refused(folder):
    bare = Question(question="object", right="a frog")
    with pytest.raises(UnreadableCases, match="options"):
        ClipLensJudge(ClipJudge(folder))([PICTURES[0]], [bare])
