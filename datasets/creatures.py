"""The creatures of the demo data: heads that tell the class, coats that classes share, and a pen.

In: a picture (H, W, 3) uint8 RGB to draw on, a random generator, a place and a size. Out: the
picture with the creature on it, and masks of what was drawn.
"""

from typing import Any

import cv2
import numpy as np
from numpy.random import Generator

# Heads, which tell the class: colours of face and trim, trim shapes behind the face and on it.
# Shapes are circles (x, y, radius) or polygons; x forward, y up, 1 is the head's radius.
HEADS: dict[str, Any] = {
    "hare": ((235, 130, 165), (250, 205, 215), [[(-.7, .5), (-.75, 2.3), (-.3, 2.5), (-.05, .8)],
             [(.05, .8), (.2, 2.4), (.65, 2.3), (.55, .5)]], [(.8, -.1, .2)]),
    "cat": ((245, 140, 25), (255, 225, 170), [[(-1, .2), (-.95, 1.6), (-.1, .9)],
            [(.1, .9), (.85, 1.6), (1, .2)]], [(.55, -.4, .42)]),
    "duck": ((25, 140, 70), (250, 190, 30), [(-.75, .75, .35), (-.35, 1.05, .35)],
             [[(.6, .3), (1.9, -.05), (1.9, -.3), (.5, -.45)]]),
    "mouse": ((75, 110, 225), (190, 200, 250), [(-.8, .85, .72), (.7, .95, .66)], [(1, -.15, .22)]),
    "ox": ((165, 35, 35), (245, 235, 205), [[(-.5, .6), (-1.5, 1.1), (-1.4, 2), (-1, 1.4),
           (.1, .9)], [(.5, .6), (1.5, 1.1), (1.4, 2), (1, 1.4), (-.1, .9)]], [(.65, -.4, .45)]),
    "snail": ((140, 55, 175), (225, 180, 240), [[(-.3, .8), (-.75, 2), (-.55, 2.1), (0, .8)],
              [(.2, .8), (.6, 2), (.8, 1.95), (.5, .8)], (-.65, 2.1, .28), (.7, 2.05, .28)],
              [(.2, -.5, .3)]),
    "unicorn": ((60, 200, 205), (255, 245, 120), [[(0, .7), (1.1, 2.5), (.75, .5)]],
                [(.75, -.35, .4)]),
    "lion": ((250, 205, 60), (165, 85, 20), [(0, 0, 1.55)], [(.7, -.25, .3)]),
}
CLASS_NAMES = tuple(HEADS)
# Coats, which classes share: a pattern in body coordinates (u forward, v up, n noise) and two muted
# colours: stripes, spots, patches, bands, checks, a pale belly, rings, waves.
COATS: tuple[Any, ...] = (
    (lambda u, v, n: np.sin(17 * u + 2 * v), (105, 80, 60), (215, 190, 155)),
    (lambda u, v, n: np.sin(13 * u) * np.sin(13 * v) - .2, (85, 95, 110), (195, 200, 208)),
    (lambda u, v, n: 2.5 * n, (60, 55, 60), (235, 230, 220)),
    (lambda u, v, n: np.sin(15 * v), (75, 100, 130), (165, 190, 210)),
    (lambda u, v, n: np.sin(11 * (u + v)) * np.sin(11 * (u - v)), (95, 110, 70), (190, 195, 140)),
    (lambda u, v, n: v + .15 + n, (120, 90, 95), (230, 210, 205)),
    (lambda u, v, n: np.sin(16 * np.hypot(u, v)), (115, 95, 140), (200, 185, 215)),
    (lambda u, v, n: np.sin(13 * u + 4 * np.sin(9 * v)), (150, 130, 75), (225, 210, 155)),
)


def smooth_noise(rng: Generator, height: int, width: int, cells: int) -> np.ndarray:
    """Noise around [0, 1] with `cells` bumps a side: (H, W) float32."""
    coarse = rng.random((min(cells, height), cells), dtype=np.float32)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


class Pen:
    """Draws on a picture in a creature's coordinates: u forward, v up, 1 is half a body's length.

    `view` is the part of the picture (H, W, 3) uint8 RGB around it, `drawn` what it covers there.
    """

    def __init__(self, picture: np.ndarray, rng: Generator, centre: np.ndarray,
                 unit: float) -> None:
        corner = np.maximum(np.array(centre) - 2.2 * unit, 0).astype(int)
        end = (np.array(centre) + 2.2 * unit).astype(int)
        self.window = (slice(corner[1], end[1]), slice(corner[0], end[0]))
        self.view = picture[self.window]
        self.drawn: np.ndarray = np.zeros(self.view.shape[:2], dtype=np.uint8)
        self.rng, self.unit, self.centre = rng, unit, np.array(centre) - corner
        turn, flip = rng.normal(0, 0.12), rng.choice((-1, 1))
        self.axes = np.array([[flip * np.cos(turn), -flip * np.sin(turn)],  # (u, v) -> (x, y)
                              [-np.sin(turn), -np.cos(turn)]])

    def draw(self, shapes: Any, colour: Any, origin: tuple = (0, 0),
             size: float = 1) -> None:
        """Paint polygons and circles in a colour (3,) or (H, W, 3), with a dark outline."""
        outlines = []
        for shape in shapes:
            if isinstance(shape, tuple):
                angle = np.linspace(0, 2 * np.pi, 24)[:, None]
                shape = shape[:2] + shape[2] * np.hstack((np.cos(angle), np.sin(angle)))
            local = np.array(origin) + size * np.asarray(shape)
            outlines.append(np.round(self.centre + self.unit * local @ self.axes.T).astype(int))
        low = np.maximum(np.min([o.min(0) for o in outlines], 0) - 1, 0)
        high = np.maximum(np.max([o.max(0) for o in outlines], 0) + 2, 0)
        box = (slice(low[1], high[1]), slice(low[0], high[0]))
        mask = np.zeros_like(self.drawn[box])
        if not mask.size:
            return
        for outline in outlines:
            cv2.fillPoly(mask, [(outline - low).astype(np.int32)], 1)
        core = cv2.erode(mask, np.ones((3, 3), np.uint8), iterations=max(1, int(self.unit / 45)))
        colour = np.asarray(colour, np.float32)
        shaded = (colour[box] if colour.ndim == 3 else colour) * (0.5 + 0.5 * core)[..., None]
        np.copyto(self.view[box], shaded.astype(np.uint8), where=mask[..., None] > 0)
        self.drawn[box] |= mask

    def coat(self, index: Any) -> np.ndarray:
        """A coat for the view around the body, (H, W, 3), paler above than below."""
        height, width = self.drawn.shape
        reach = np.stack((self.centre - 1.7 * self.unit, self.centre + 1.7 * self.unit))
        left, top, right, bottom = np.clip(reach, 0, (width, height)).astype(int).ravel().tolist()
        body = (slice(top, bottom), slice(left, right))
        y, x = (np.arange(part.start, part.stop, dtype=np.float32) for part in body)
        x, y = (x - self.centre[0]) / self.unit, (y[:, None] - self.centre[1]) / self.unit
        (xu, xv), (yu, yv) = (self.axes * self.rng.uniform(0.85, 1.2)).astype(np.float32)
        noise = smooth_noise(self.rng, height, width, 16) - np.float32(0.5)
        u, v = x * xu + y * yu, x * xv + y * yv
        pattern, *colours = COATS[index % len(COATS)]
        share = 1 / (1 + np.exp(-9 * pattern(u, v, noise[body])))[..., None]
        dark, light = (np.array(colours) + self.rng.normal(0, 14, 3)).astype(np.float32)
        shade = np.clip(1 + np.float32(0.3) * v, 0.65, 1.15)[..., None]
        coat = np.zeros((height, width, 3), np.float32)
        coat[body] = np.clip((dark + share * (light - dark)) * shade, 0, 255)
        return coat

    def creature(self, label: int, coat_index: int) -> None:
        """A body in coat `coat_index` with the head of class `label`."""
        rng, coat = self.rng, self.coat(coat_index)
        plump, legs = rng.uniform(0.48, 0.68), rng.choice((0, 2, 4), p=(0.2, 0.3, 0.5))
        feet = np.array((0, -0.25) if legs == 2 else (-0.75, -0.5, 0.4, 0.65))[:legs]
        length = plump + rng.uniform(0.25, 0.45)
        tail = rng.uniform(0.2, 1)
        self.draw([[(f - .1, 0), (f + .1, 0), (f + .12, -length), (f - .12, -length)]
                   for f in feet] + [[(-.7, .1), (-1.3, tail), (-1.45, tail), (-.9, -.2)]],
                  0.85 * coat)
        angle = np.linspace(0, 2 * np.pi, 40)
        self.draw([np.stack((np.cos(angle), plump * np.sin(angle)), 1),
                   [(.3, .4), (.9, -.2), (1.2, .4), (.85, .75)]], coat)
        face, trim, behind, front = HEADS[CLASS_NAMES[label]]
        tint = rng.normal(0, 14, 3)
        face, trim = np.clip(face + tint, 0, 255), np.clip(trim + tint, 0, 255)
        spot, radius = (rng.uniform(1, 1.15), rng.uniform(.45, .75)), rng.uniform(.28, .36)
        body, self.drawn = self.drawn, np.zeros_like(self.drawn)
        self.draw(behind, trim, spot, radius)
        self.draw([(0, 0, 1)], face, spot, radius)
        self.draw(front, trim, spot, radius)
        self.draw([(.35, .3, .22)], (20, 20, 25), spot, radius)
        self.head, self.drawn = self.drawn, self.drawn | body

    def head_cut(self) -> bool:
        """Whether the head touches an edge of the picture."""
        edges = (self.head[0], self.head[-1], self.head[:, 0], self.head[:, -1])
        return any(edge.any() for edge in edges)

    def distractor(self, num_classes: int) -> None:
        """What is no creature: a rock in some coat, a bush, or a ball in a head's colour."""
        kind = self.rng.choice(("rock", "bush", "ball"), p=(0.5, 0.35, 0.15))
        if kind == "ball":
            return self.draw([(0, 0, .6)], HEADS[CLASS_NAMES[self.rng.integers(num_classes)]][0])
        if kind == "bush":
            leaves = np.array((60, 110, 50)) + self.rng.uniform(-30, 30, 3)
            return self.draw([(*self.rng.uniform(-1, 1, 2), .5) for _ in range(7)], leaves)
        angle = np.linspace(0, 2 * np.pi, 9)[:, None]
        outline = self.rng.uniform(0.7, 1.2, angle.shape) * np.hstack((np.cos(angle),
                                                                       np.sin(angle)))
        return self.draw([outline], self.coat(self.rng.integers(num_classes)))
