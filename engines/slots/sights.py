"""What the vision tower saw, kept by content: the same picture is looked at once.

The key holds the pictures and how they are processed, the weights' fingerprint, the dtype and the
row's realm: how long a first token takes tells what was seen before, so strangers share nothing.
"""

import hashlib

from engines.store import Kept
from models.hosted import HostedModel
from models.sight import Seen, Shown
from models.vision_language import VisionLanguage


class Sights:
    """Features of pictures, least recently used first out; owner thread only.

    Args:
        hosted: The model; of one that reads words only nothing is ever asked.
        capacity: Bytes that are kept; 0 for none.
    """

    def __init__(self, hosted: HostedModel, capacity: int) -> None:
        self.hosted = hosted
        self.kept: Kept[Seen] = Kept(capacity)
        self.asked = self.known = 0

    def look(self, shown: Shown, realm: str) -> Shown:
        """The row's pictures with what was seen there."""
        if shown.seen is not None:
            return shown
        family = self.hosted.family
        if not isinstance(family, VisionLanguage):
            raise TypeError(f"{self.hosted.name} sees nothing")
        self.asked += 1
        said = (self.hosted.fingerprint, str(self.hosted.dtype), realm, shown.sight.digest)
        key = hashlib.sha256("\n".join(said).encode()).hexdigest()
        seen = self.kept.get(key)
        if seen is None:
            seen = family.see(self.hosted, shown.sight)
            self.kept.put(key, seen, seen.nbytes)
        else:
            self.known += 1
        return Shown(sight=shown.sight, seen=seen)
