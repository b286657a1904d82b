"""Every editor that is there."""

import editors.methods as package
from models.method import discover

EDITORS = discover(package, group="tiller.editors")
