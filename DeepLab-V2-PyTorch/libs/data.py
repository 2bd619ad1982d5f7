"""Plain images to predict, without a data set around them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from datasets.images import read_image
from datasets.transforms import Transform
from libs.transforms import shrink
from utils.files import UserError


class Pictures(Dataset):
    """Images without a data set around them; an unreadable one becomes {"error": message}.

    A sample has "size", the image's own (height, width), and "pixels" (h, w, 3), which the network
    sees: of an image whose longest side is beyond `max_side`, they are a smaller version.
    """

    def __init__(self, by_id: Mapping[str, Path], transform: Transform,
                 max_side: int | None = None) -> None:
        self.paths, self.transform, self.max_side = list(by_id.items()), transform, max_side

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image_id, path = self.paths[index]
        try:
            image, _ = read_image(path)
        except UserError as error:
            return {"error": str(error)}
        size = (image.height, image.width)
        image = shrink(image, self.max_side)
        sample = {"id": image_id, "size": size, "pixels": np.array(image), "image": image}
        return self.transform.sample(sample, np.random.default_rng())  # nothing is random here
