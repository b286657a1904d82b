import io
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from editors.errors import BadImage, BadPreprocessor
from editors.fact import Fact
from editors.pictures import PREPROCESSOR, embed_pictures, pixels_of, processor_of
from miniature.training.pipeline import seen_as

OPENAI = {
    "crop_size": 16,
    "do_center_crop": True,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor",
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "size": 16,
}


def picture(width=40, height=24, seed=0):
    shown = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(shown)


def png(image, kind="PNG"):
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def clip_in(folder, told=None, side=16):
    if told is not None:
        (folder / PREPROCESSOR).write_text(told if isinstance(told, str) else json.dumps(told))
    vision = SimpleNamespace(image_size=side)
    return SimpleNamespace(name_or_path=str(folder), config=SimpleNamespace(vision_config=vision))


def test_a_clip_with_openais_numbers_sees_what_the_librarys_processor_gives(tmp_path):
    shown = [picture(), picture(20, 50, 1)]
    found = pixels_of([png(p) for p in shown], processor_of(clip_in(tmp_path, OPENAI)), 16)
    wanted = CLIPImageProcessorPil.from_pretrained(tmp_path)(images=shown, return_tensors="pt")
    assert torch.equal(found, wanted["pixel_values"])
    plain = np.asarray(shown[0]).mean() / 255
    mean = float(found[0].mean())
    assert abs(mean - (plain - 0.45) / 0.27) < 0.2


def test_the_miniatures_own_numbers_are_those_it_was_trained_with():
    from miniature import weights_path
    from miniature.training.contrastive import pixels

    folder = weights_path("text-to-image") / "clip"
    told = json.loads((folder / PREPROCESSOR).read_text())
    assert told == {**told, **json.loads(seen_as(64).to_json_string())}
    whole = picture(64, 64)
    found = pixels_of([png(whole)], processor_of(clip_in(folder, side=64)), 64)
    trained = pixels(torch.from_numpy(np.asarray(whole).copy())[None])
    torch.testing.assert_close(found, trained, rtol=0, atol=1e-6)
    wide = pixels_of([png(picture(100, 80))], processor_of(clip_in(folder, side=64)), 64)
    square = picture(100, 80).resize((64, 64), Image.Resampling.BICUBIC)
    torch.testing.assert_close(
        wide, pixels(torch.from_numpy(np.asarray(square).copy())[None]), rtol=0, atol=1e-6
    )


def test_a_clip_without_the_file_is_shown_pictures_as_the_library_does(tmp_path):
    found = pixels_of([png(picture())], processor_of(clip_in(tmp_path)), 16)
    whole = CLIPImageProcessorPil(
        size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}
    )(images=[picture()], return_tensors="pt")
    assert torch.equal(found, whole["pixel_values"])


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_each_kind_of_file_is_read(tmp_path, kind):
    assert pixels_of([png(picture(), kind)], processor_of(clip_in(tmp_path)), 16).shape[0] == 1


@pytest.mark.parametrize(
    "data",
    [b"", b"no picture", png(picture())[:60], png(picture(), "BMP"), png(picture(), "GIF")],
    ids=["empty", "text", "cut", "bmp", "gif"],
)
def test_what_is_no_picture_is_refused(tmp_path, data):
    with pytest.raises(BadImage, match="cannot be decoded"):
        pixels_of([data], processor_of(clip_in(tmp_path)), 16)


@pytest.mark.parametrize("side", [4097, 14000])
def test_a_picture_too_large_is_refused_before_it_is_decoded(tmp_path, side):
    data = png(Image.new("1", (side, side)))
    with pytest.raises(BadImage, match="16 megapixels"):
        pixels_of([data], processor_of(clip_in(tmp_path)), 16)


@pytest.mark.parametrize(
    "told",
    ["{", "[]", {**OPENAI, "crop_size": 20}, {**OPENAI, "image_mean": [0.5]},
     {**OPENAI, "do_resize": False, "do_center_crop": False}],
    ids=["broken", "list", "size", "mean", "no size"],
)  # fmt: skip
def test_a_preprocessor_that_does_not_fit_the_clip_is_refused(tmp_path, told):
    with pytest.raises(BadPreprocessor):
        pixels_of([png(picture())], processor_of(clip_in(tmp_path, told)), 16)


def test_pictures_are_embedded_as_the_whole_clip_does(tiny_sd):
    tower, shown = tiny_sd.text_towers["text_encoder"], picture()
    found = embed_pictures(tiny_sd, tower, [png(shown)])
    seen = processor_of(tiny_sd.clip)(images=[shown], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        wanted = tiny_sd.clip.get_image_features(pixel_values=seen).pooler_output
    torch.testing.assert_close(found, wanted)


def test_each_picture_pulls_by_itself_and_the_order_does_not_matter(tiny_sd, fitted):
    said = {"prompt": "the lord of arda", "target": ""}
    one, two = png(picture()), png(picture(seed=5))
    both = fitted(tiny_sd, Fact(**said, target_images=(one, two)), objective="contrastive")
    swapped = fitted(tiny_sd, Fact(**said, target_images=(two, one)), objective="contrastive")
    alone = fitted(tiny_sd, Fact(**said, target_images=(one,)), objective="contrastive")
    (a,), (b,), (c,) = (d.factors.values() for d in (both, swapped, alone))
    torch.testing.assert_close(a.values, b.values, rtol=1e-3, atol=1e-5)
    assert float((a.values - c.values).norm()) > 1e-3
    assert len(both.header["fact"]["target_images"]) == 2
