"""Pictures whose quality was measured by other programs: 8 bits, made of integers, so the same everywhere."""

import functools

import numpy as np


@functools.cache
def leaves():
    """Dead leaves: discs of all sizes that cover each other; simple, and with the statistics of photographs."""
    random = np.random.RandomState(0)  # the generator that never changes
    image = np.zeros((301, 405, 3), int)  # odd sides on purpose
    rows, columns = np.mgrid[:301, :405]
    for _ in range(1500):
        radius = 80 // random.randint(1, 27)
        row, column = random.randint(301), random.randint(405)
        inside = (rows - row) ** 2 + (columns - column) ** 2 <= radius**2
        image[inside] = random.randint(256, size=3) + random.randint(-6, 7, size=(inside.sum(), 1))
    return soften(image.clip(0, 255), 1)


def noisy():
    noise = np.random.RandomState(1).randint(-25, 26, size=(301, 405, 3))
    return (leaves() + noise).clip(0, 255).astype(np.uint8)


def blocky():
    return np.kron(leaves()[::8, ::8], np.ones((8, 8, 1), np.uint8))


def blurred():
    return soften(leaves(), 6)


def grey():
    return leaves()[:200, :280, 1]


def dark():
    """A third of it is black, so that two of four patches have no statistics."""
    image = grey().copy()
    image[:, :110] = 0
    return image


def soften(image, times):
    image = image.astype(int)
    for axis in (0, 1) * times:
        image = (np.roll(image, 1, axis) + 2 * image + np.roll(image, -1, axis) + 2) // 4
    return image.astype(np.uint8)


PICTURES = {"leaves": leaves, "noisy": noisy, "blocky": blocky, "blurred": blurred, "grey": grey, "dark": dark}
