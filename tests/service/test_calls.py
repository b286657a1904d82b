"""Names of the caller's stay one segment of a path: they lead nowhere else."""

import httpx2
import pytest

from service.calls import at
from service.client import Tiller, TillerError

ELSEWHERE = "../models"


def test_a_name_is_quoted_whatever_it_holds():
    assert at("/v1/edits/{}/versions/{}", "a b/c", 3) == "/v1/edits/a%20b%2Fc/versions/3"
    assert at("/v1/models/{}", "lm+cheerful@live?x#y%2F") == (
        "/v1/models/lm%2Bcheerful%40live%3Fx%23y%252F"
    )
    for name in ("", ".", ".."):
        with pytest.raises(TillerError) as refused:
            at("/v1/edits/{}", name)
        assert refused.value.code == "bad_name" and refused.value.remedy


CALLS = {
    "/v1/datasets/": lambda t, n: t.datasets.show(n),
    "/v1/datasets/ rows": lambda t, n: t.datasets.rows(n),
    "/v1/evaluations/": lambda t, n: t.evaluations.show(n),
    "/v1/evaluations/ artifact": lambda t, n: t.evaluations.artifact(n, n),
    "/v1/evaluations/ export": lambda t, n: t.evaluations.export(n, "mib-circuit", "ioi"),
    "/v1/edits/": lambda t, n: t.edits.show(n),
    "/v1/edits/ version": lambda t, n: t.edits.show("king", n),
    "/v1/edits/ promote": lambda t, n: t.edits.promote(n, 1, alias=n),
    "/v1/edits/ rollback": lambda t, n: t.edits.rollback(n, alias=n),
    "/v1/edits/ retire": lambda t, n: t.edits.retire(n, 1),
    "/v1/edits/ export": lambda t, n: t.edits.export(n, 1),
    "/v1/jobs/": lambda t, n: t.jobs.show(n),
    "/v1/jobs/ cancel": lambda t, n: t.jobs.cancel(n),
    "/v1/jobs/ events": lambda t, n: list(t.jobs.events(n)),
    "/v1/models/": lambda t, n: t.models.show(n),
    "/v1/variants/": lambda t, n: t.variants.delete(n),
    "/v1/keys/": lambda t, n: t.keys.revoke(n),
    "/v1/saes/": lambda t, n: t.saes.show(n),
    "/v1/saes/ features": lambda t, n: t.saes.features(n),
    "/v1/saes/ feature": lambda t, n: t.saes.feature(n, 1),
    "/v1/saes/ label": lambda t, n: t.saes.label(n, {1: "x"}),
    "/v1/presets/": lambda t, n: t.presets.show(n),
    "/v1/presets/ put": lambda t, n: t.presets.put(n, {}, model="tiny"),
    "/v1/vectors/": lambda t, n: t.vectors.show(n, 1),
    "/v1/vectors/ export": lambda t, n: t.vectors.export(n, 1),
    "/v1/backpatch/calibrations/": lambda t, n: t.backpatch.show(n),
    "/v1/backpatch/calibrations/ file": lambda t, n: t.backpatch.artifact(n, n),
}


@pytest.mark.parametrize("under", list(CALLS))
def test_no_name_leads_out_of_its_noun(under, url):
    asked = []
    with Tiller(url) as tiller:
        tiller.http.event_hooks = {"request": [lambda request: asked.append(request.url)]}
        with pytest.raises(TillerError) as refused:
            CALLS[under](tiller, ELSEWHERE)
    assert refused.value.status in (404, 405, 422)
    noun = under.split()[0]
    (sent,) = asked
    path = httpx2.URL(sent).raw_path.decode()
    assert path.startswith(noun) and "/../" not in path and "..%2Fmodels" in path


def test_a_model_whose_name_has_a_slash_is_still_one_that_can_be_asked_for(url):
    with Tiller(url) as tiller, pytest.raises(TillerError) as refused:
        tiller.models.show("nobody/none")
    assert refused.value.status == 404 and "nobody/none" in refused.value.problem
