"""Plain images to predict, without a data set around them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from datasets.images import read_image
from datasets.layout import IMAGE_SUFFIXES
from utils.files import UserError


class Pictures(Dataset):
    """Images without a data set around them; an unreadable one becomes {"error": message}."""

    def __init__(self, paths: Sequence[Path], transform: Any) -> None:
        self.paths, self.transform = paths, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        path = self.paths[index]
        try:
            image, _ = read_image(path)
        except UserError as error:
            return {"error": str(error)}
        rng = np.random.default_rng()  # not drawn from: nothing is random here
        return self.transform.sample({"id": path.stem, "size": (image.height, image.width),
                               "pixels": np.array(image), "image": image}, rng)


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
