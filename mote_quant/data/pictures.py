"""The images of a row: paths beside the file or the bytes themselves, looked at before anything is done with them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mote_quant.data.conversations import named_within
from mote_quant.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

COLUMNS = ("image", "images")
"""One image a row, or a list of them."""


@dataclass(frozen=True)
class Picture:
    """An image as the bytes of its file; `where` names its row and path."""

    where: str
    data: bytes

    def check(self) -> None:
        """DataError for what is no image, or damaged so that it shows without decoding."""
        from PIL import Image

        with _refusing(self.where), Image.open(BytesIO(self.data)) as image:
            image.verify()

    def load(self) -> Image:
        """As RGB, the right way up. DataError for a damaged one."""
        from PIL import Image, ImageOps

        with _refusing(self.where), Image.open(BytesIO(self.data)) as image:
            return ImageOps.exif_transpose(image).convert("RGB")


def pictures_of(row: Mapping[str, Any], where: str, folder: Path) -> list[Picture]:
    """The images of a row; paths start from `folder`. DataError for a row without one, or with a path to nothing."""
    values = named_within(row) or [
        value for column in COLUMNS for value in _listed(row.get(column)) if value is not None
    ]
    if not values:
        raise DataError(f"{where}: there is no image, though other rows have one; give it one or leave it out")
    return [_picture(value, where, folder) for value in values]


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _picture(value: Any, where: str, folder: Path) -> Picture:
    if isinstance(value, bytes):
        return Picture(f"{where}: the image", value)
    if isinstance(value, str):
        return _file(folder / value, where)
    if isinstance(value, dict) and isinstance(value.get("bytes"), bytes):
        return Picture(f"{where}: the image {value.get('path') or ''}".rstrip(), value["bytes"])
    if isinstance(value, dict) and isinstance(value.get("path"), str):
        return _file(folder / value["path"], where)
    raise DataError(f"{where}: the image is a {type(value).__name__}; needed are a path or the bytes of an image file")


def _file(path: Path, where: str) -> Picture:
    try:
        return Picture(f"{where}: the image {path}", path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{where}: the image {path} does not exist") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{where}: the image {path} cannot be read: {error}") from error


@contextmanager
def _refusing(where: str) -> Iterator[None]:
    """What Pillow raises for bytes it cannot read becomes a DataError."""
    from PIL import Image, UnidentifiedImageError

    try:
        yield
    except UnidentifiedImageError as error:
        raise DataError(f"{where} is of no image format that Pillow knows") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{where} is damaged: {error}") from error
