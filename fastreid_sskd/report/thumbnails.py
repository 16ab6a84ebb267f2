"""Images small enough to be part of a page."""

import base64
import io
import os

from markupsafe import Markup
from PIL import Image

__all__ = ["Thumbnails"]


class Thumbnails:
    """Makes the tile of an image: a picture inside the page, or only words where pictures are not wanted.

    Args:
        images: whether to show pictures.
        height: of a picture in pixels; its width follows.
    """

    def __init__(self, images: bool = True, height: int = 96):
        self.images = images
        self.height = height

    def tile(self, item: tuple, kind: str = "") -> Markup:
        """The tile of (path, identity, camera).

        Args:
            item: of a data set.
            kind: "right", "wrong", "query" or "": its frame.
        """
        path, identity, camera = item[:3]
        words = f"identity {identity}, camera {camera}"
        body = Markup('<span class="words">{}</span>').format(words)
        if self.images:
            try:
                picture = Markup('<img alt="{}" title="{}" src="data:image/jpeg;base64,{}">').format(
                    words, os.path.basename(path), self._data(path)
                )
            except OSError as error:
                picture = Markup('<span class="words">no image: {}</span>').format(type(error).__name__)
            body = picture
        return Markup('<span class="tile {}">{}</span>').format(kind, body)

    def _data(self, path: str) -> str:
        with Image.open(path) as image:
            width = max(1, round(image.width * self.height / image.height))
            small = image.convert("RGB").resize((width, self.height), Image.Resampling.BILINEAR)
        buffer = io.BytesIO()
        small.save(buffer, "JPEG", quality=80)
        return base64.b64encode(buffer.getvalue()).decode()
