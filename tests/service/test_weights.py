"""Labels that lie beside a dictionary's files."""

import pytest

from service.errors import BadSettings
from service.registry.records import FeatureLabel
from service.settings import Model
from service.weights import labels_of


def model(folder):
    saes = ({"id": "one", "path": str(folder)},)
    return Model.model_validate({"name": "lm", "path": "somewhere", "saes": saes})


def test_labels_are_read_by_their_dictionarys_id(tmp_path):
    line = '{"feature": 3, "label": "the sea", "source": "somebody"}\n'
    (tmp_path / "labels.jsonl").write_text(line)
    told = FeatureLabel(feature=3, label="the sea", source="somebody")
    assert labels_of(model(tmp_path)) == {"one": [told]}


def test_without_the_file_there_are_none(tmp_path):
    assert labels_of(model(tmp_path)) == {}


@pytest.mark.parametrize("line", ["not json", '{"feature": 3}', "[1]"])
def test_a_file_that_is_no_list_of_labels_is_refused_by_name(tmp_path, line):
    (tmp_path / "labels.jsonl").write_text(line)
    with pytest.raises(BadSettings, match=r"labels\.jsonl"):
        labels_of(model(tmp_path))
