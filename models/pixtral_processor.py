"""Pixtral's processor, which the library has only where torchvision is installed.

What torchvision is for there is video and speed; a picture needs neither. Folders that were saved
with the library's class are read, and saved folders are read by the library's class.
"""

from collections.abc import Mapping
from typing import Any, no_type_check

from transformers import BatchFeature, ProcessorMixin


class PixtralProcessor(ProcessorMixin):
    """Pixtral's: a placeholder for each patch, a break behind each row of them, an end behind all.

    Source: the class of the same name in transformers 5.23.

    Args:
        image_processor: Resizes a picture to whole patches.
        tokenizer: Knows the three marks.
        patch_size: Pixels of a patch of the vision tower.
        spatial_merge_size: Patches to a side that become one token.
        chat_template: Of the conversation.
        image_token: Stands for a patch.
        image_break_token: Stands behind a row of patches.
        image_end_token: Stands behind a picture.
        settings: What else the folder states, unread.
    """

    @no_type_check  # a wrapper would hide the names, which the library reads from its code
    def __init__(  # noqa: PLR0913, PLR0917 - the library's signature
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        patch_size: int = 16,
        spatial_merge_size: int = 1,
        chat_template: str | None = None,
        image_token: str = "[IMG]",  # noqa: S107 - a mark
        image_break_token: str = "[IMG_BREAK]",  # noqa: S107
        image_end_token: str = "[IMG_END]",  # noqa: S107
        **settings: Any,  # noqa: ARG002
    ) -> None:
        super().__init__(image_processor, tokenizer, chat_template=chat_template)
        self.patch_size, self.spatial_merge_size = patch_size, spatial_merge_size
        self.image_token, self.image_token_id = image_token, self._id(image_token)
        self.image_break_token = image_break_token
        self.image_break_token_id = self._id(image_break_token)
        self.image_end_token, self.image_end_token_id = image_end_token, self._id(image_end_token)

    def _id(self, mark: str) -> int:
        return int(self.tokenizer.convert_tokens_to_ids(mark))

    @property
    def side(self) -> int:
        """Pixels of the side of a token."""
        return self.patch_size * self.spatial_merge_size

    def _process_images(self, images: Any, **settings: Any) -> tuple[BatchFeature, list[str]]:
        side = {"height": self.side, "width": self.side}
        return super()._process_images(images, **{**settings, "patch_size": side})

    def replace_image_token(
        self, image_inputs: Mapping[str, Any], image_idx: int, **_settings: Any
    ) -> str:
        """The marks of one picture, as its processed size has them."""
        height, width = (int(n) // self.side for n in image_inputs["image_sizes"][image_idx])
        row = self.image_token * width
        return (row + self.image_break_token) * (height - 1) + row + self.image_end_token
