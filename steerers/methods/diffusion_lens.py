"""Draw what a text encoder knows at one of its layers (Diffusion Lens: Toker et al., ACL 2024).

The later blocks pass the stream through, then the pipeline does to it what it always does: its
final norm, or nothing. Covered: every family that says how its encoders are looked into
(`TextToImage.lenses`). Not covered: encoders of which a pipeline reads several layers at once, and
pooled vectors; they are refused with the family's reason. The negative prompt is always read in
full: the engine leaves `Exit` out of its patch.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, MaxLen

from models.errors import MethodNotApplicable
from models.family import Beside, TextToImage
from models.hosted import HostedModel
from models.method import Method
from models.patch import Patch

Noise = Literal["shared", "per_layer"]
"""What the layers of one sweep start from: the same noise, or each a draw of its own."""


@dataclass(frozen=True, kw_only=True)
class DiffusionLens(Method):
    """One layer of one text encoder, for one row."""

    layer: Annotated[int, Ge(0)]
    """As `hidden_states` counts: 0 is what enters block 0, l what leaves block l - 1."""
    encoder: Annotated[str, MaxLen(64)] | None = None
    """Its name in stream sites (`text`, `text_2`); None is the first that can be looked at."""
    beside: Beside = "blank"
    """What the other paths say below the ordinary layer: the empty prompt, or the whole one."""
    noise: Noise = "shared"
    """`per_layer` is the reference's: one generator per seed, not seeded again for a layer."""
    kind: Literal["diffusion_lens"] = "diffusion_lens"

    def plan(self, hosted: HostedModel) -> Patch:
        """The patch under which the encoder says what it knows at the layer.

        Raises:
            MethodNotApplicable, UnknownTower, BadLayer: The model cannot be looked at in this way.
        """
        family = hosted.family
        if not isinstance(family, TextToImage):
            raise MethodNotApplicable(self.kind, family.title, "it draws no pictures.")
        return family.lens(hosted, self.encoder).exit(self.layer)

    def draw(self, place: int) -> int:
        """Which draw of its generator the row begins with, for the layer at that place of a sweep.

        The reference draws the noise of one layer after the other from one generator.
        """
        return place if self.noise == "per_layer" else 0


METHOD = DiffusionLens
EXAMPLE = DiffusionLens(layer=1)
