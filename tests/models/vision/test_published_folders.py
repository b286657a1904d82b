"""Folders as the hub has them, written by older versions of the library, read the same."""

import json

import pytest
import torch

from models.family import FAMILIES
from models.loading import load
from tests.models.vision.conftest import SEEING
from tests.models.vision.equality import asked, picture


def as_published(folder):
    """The processor's settings in a file of the pictures' own, the template in another."""
    held = folder / "processor_config.json"
    stated = json.loads(held.read_text())
    pictures = {**stated.pop("image_processor"), "processor_class": stated["processor_class"]}
    (folder / "preprocessor_config.json").write_text(json.dumps(pictures))
    held.unlink()
    if set(stated) > {"processor_class"}:
        held.write_text(json.dumps(stated))
    template = folder / "chat_template.jinja"
    if template.exists():
        old = json.dumps({"chat_template": template.read_text()})
        (folder / "chat_template.json").write_text(old)
        template.unlink()
    return folder


@pytest.mark.parametrize("kind", SEEING)
def test_an_older_folder_is_looked_at_as_a_new_one(kind, tmp_path):
    folder, image = FAMILIES[kind].tiny(tmp_path), picture(40, 24)
    found = []
    for prepare in (lambda folder: folder, as_published):
        hosted = load(kind, prepare(folder))
        found.append(hosted.family.look(hosted, asked(image, "the red cat"), [image]))
        hosted.close()
    (new, seen), (old, seen_too) = found
    assert old == new and seen_too.digest == seen.digest
    assert all(torch.equal(seen_too.inputs[name], seen.inputs[name]) for name in seen.inputs)
