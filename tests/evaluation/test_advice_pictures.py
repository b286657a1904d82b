"""Which layers' visual tokens carry the answer: tracing between two pictures."""

import pytest
import torch
from PIL import Image

from evaluation.advice import LayerAdvice, advise
from evaluation.tracing_pictures import PicturePair, prepare_pictures, trace_pictures
from miniature import weights_path
from miniature.sight.tasks import some
from models.decoder import TOWER
from models.errors import MethodNotApplicable
from models.family import FAMILIES
from models.loading import load
from models.patch import Patch, Shift
from models.site import block


@pytest.fixture(scope="module")
def seer():
    hosted = load("miniature-vl", weights_path("vision-language"))
    yield hosted
    hosted.close()


@pytest.fixture(scope="module")
def faces():
    """Pairs of faces, in pictures of equal size."""
    items = some("feeling", "held-out", 24, 3)
    pairs = []
    for one, other in zip(items[::2], items[1::2], strict=True):
        size = one.picture.size
        pairs.append(
            PicturePair(
                question=one.question,
                clean=[one.picture],
                corrupted=[other.picture.resize(size)],
                correct=one.answer,
                incorrect=other.answer,
            )
        )
    return pairs


def drain(work):
    while True:
        try:
            next(work)
        except StopIteration as over:
            return over.value


def test_a_trace_is_what_shifts_of_every_visual_token_come_to(seer, faces):
    kept, _ = prepare_pictures(seer, faces[:3])
    pair = kept[0]
    (trace,) = trace_pictures(seer, [pair], target=1)
    ids = torch.tensor([pair.corrupted.ids])
    shown = {form: getattr(pair, form).shown(seer) for form in ("clean", "corrupted")}
    sites = [block(TOWER, layer) for layer in range(len(seer.towers[TOWER]))]
    right, wrong = pair.clean.answer[0], pair.corrupted.answer[0]

    @torch.inference_mode()
    def margin(form, patch=None):
        with seer.planned([patch or Patch()]):
            last = seer.family.logits(seer, ids, [shown[form]])[0, -1]
        return float(last[right] - last[wrong])

    streams = {}
    for form in shown:
        with torch.inference_mode(), seer.captured(*sites) as seen:
            seer.family.logits(seer, ids, [shown[form]])
        streams[form] = {site: seen[site][0][0] for site in sites}
    assert trace.clean == pytest.approx(margin("clean"), abs=1e-3)
    assert trace.corrupted == pytest.approx(margin("corrupted"), abs=1e-3)

    def written(source, target, columns):
        change = streams["clean"][sites[source]] - streams["corrupted"][sites[target]]
        return Patch(
            tuple(
                Shift(site=sites[target], vector=change[column], positions=(column,))
                for column in columns
            )
        )

    columns, last = pair.corrupted.columns, (len(pair.corrupted.ids) - 1,)
    for layer in (0, 2, len(sites) - 1):
        same = margin("corrupted", written(layer, layer, columns))
        assert float(trace.restored["visual"][layer]) == pytest.approx(same, abs=1e-3)
        at_last = margin("corrupted", written(layer, layer, last))
        assert float(trace.restored["last"][layer]) == pytest.approx(at_last, abs=1e-3)
        back = margin("corrupted", written(max(layer, 1), 1, columns))
        assert float(trace.restored["back"][layer]) == pytest.approx(back, abs=1e-3)


def test_early_visual_tokens_carry_everything_and_the_last_layers_nothing(seer, faces):
    found = drain(advise(seer, faces, LayerAdvice(operation="backpatch")))
    visual = [one.effects["visual"] for one in found.layers]
    last = [one.effects["last"] for one in found.layers]
    assert visual[0].value > 0.9 and visual[0].low > 0.8
    assert abs(visual[-1].value) < 1e-4 < 0.99 < last[-1].value
    assert all(e.low <= e.value <= e.high for e in visual)
    assert found.by == "back" and found.pairs + len(found.dropped) == len(faces)
    assert found.targets is not None and found.targets[0] == 0
    assert found.targets[1] < len(found.layers) - 1
    # A late stream of the visual tokens, read early, says it all the same.
    assert found.recommended == (1, len(found.layers) - 1)
    assert found.layers[-1].effects["back"].value > 0.8
    assert found.layers[0].effects["back"].value == pytest.approx(visual[0].value)
    assert all(found.layers[layer].effects["back"].value >= 0.5 for layer in found.ranked)


def test_pictures_of_unequal_length_and_equal_answers_fall_out(seer, faces):
    one = faces[0]
    wide = Image.new("RGB", (one.clean[0].width * 2, one.clean[0].height), "red")
    unequal = PicturePair(**{**vars(one), "corrupted": [wide]})
    same = PicturePair(**{**vars(one), "incorrect": one.correct})
    kept, dropped = prepare_pictures(seer, [one, unequal, same])
    assert len(kept) == 1 and [d.row for d in dropped] == [1, 2]
    assert "tokens" in dropped[0].reason and "alike" in dropped[1].reason


def test_models_that_see_nothing_and_targets_without_sources_are_refused(seer, faces, tmp_path):
    with pytest.raises(MethodNotApplicable, match="above target"):
        drain(advise(seer, faces, LayerAdvice(operation="backpatch", target=99)))
    blind = load("tiny", FAMILIES["llama"].tiny(tmp_path / "llama"))
    with pytest.raises(MethodNotApplicable, match="sees nothing"):
        drain(advise(blind, faces, LayerAdvice(operation="backpatch")))
    blind.close()
