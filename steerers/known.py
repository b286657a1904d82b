"""Every steerer that is there: settings that plan a patch from a request."""

import steerers.methods as package
from models.method import discover

STEERERS = discover(package, group="tiller.steerers")
