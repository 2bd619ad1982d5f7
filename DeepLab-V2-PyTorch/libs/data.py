"""Plain images to predict, without a data set around them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from datasets.images import read_image
from datasets.layout import IMAGE_SUFFIXES
from datasets.transforms import Transform
from libs.transforms import shrink
from utils.files import UserError


class Pictures(Dataset):
    """Images without a data set around them; an unreadable one becomes {"error": message}.

    A sample has "size", the image's own (height, width), and "pixels" (h, w, 3), which the network
    sees: of an image whose longest side is beyond `max_side`, they are a smaller version.
    """

    def __init__(self, paths: Sequence[Path], transform: Transform, max_side: int | None = None
                 ) -> None:
        self.paths, self.transform, self.max_side = paths, transform, max_side

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        path = self.paths[index]
        try:
            image, _ = read_image(path)
        except UserError as error:
            return {"error": str(error)}
        size = (image.height, image.width)
        image = shrink(image, self.max_side)
        sample = {"id": path.stem, "size": size, "pixels": np.array(image), "image": image}
        return self.transform.sample(sample, np.random.default_rng())  # nothing is random here


def find_pictures(source: Path) -> list[Path]:
    """The image `source`, or the images in the folder `source`.

    Raises:
        UserError: there are none, or two would have one name (a.jpg and a.png).
    """
    if source.is_dir():
        paths = sorted(path for path in source.iterdir()
                       if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith("."))
    else:
        paths = [source] if source.is_file() else []
    if not paths:
        raise UserError(f"--input {source}: no image there ({', '.join(sorted(IMAGE_SUFFIXES))})")
    by_name: dict[str, Path] = {}
    for path in paths:
        other = by_name.setdefault(path.stem, path)
        if other != path:
            raise UserError(f"--input: {other} and {path.name} would both become "
                            f"{path.stem}.png")
    return paths
