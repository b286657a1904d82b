"""Every editor that is there, and how one is set for a hosted model."""

from collections.abc import Mapping
from typing import Any

import editors.methods as package
from models.hosted import HostedModel
from models.method import discover

EDITORS = discover(package, group="tiller.editors")


def editor_for(hosted: HostedModel, kind: str, given: Mapping[str, Any]) -> Any:
    """The editor with the settings of the request, then of the model, then its own.

    A model states its settings in its folder's `tiller.json`, under the editor's kind.
    """
    return EDITORS[kind](**{**hosted.defaults.get(kind, {}), **given})
