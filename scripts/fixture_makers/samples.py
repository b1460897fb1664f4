"""The data that fixtures are trained on and judged with: all seeded, all small."""

from __future__ import annotations

from pathlib import Path

import numpy as np

SEED = 20240229
DIGITS_TEST_FRACTION = 0.25
VOCABULARY, SENTENCE_LENGTH, TOPICS = 1000, 16, 4


def seeded() -> np.random.Generator:
    """The generator that the weights of every untrained fixture come from."""
    return np.random.default_rng(SEED)


def vectors(*shape: int) -> np.ndarray:
    """Gaussian inputs, first axis = samples."""
    return np.random.default_rng(SEED + 1).normal(size=shape).astype(np.float32)


def digits_split() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Splits scikit-learn's handwritten digits into training and held-out parts.

    Returns:
        Train images `[n, 8, 8, 1]` float32 in [0, 1], train labels, held-out images, held-out labels.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    images = (images / 16.0).astype(np.float32).reshape(-1, 8, 8, 1)
    x_train, x_test, y_train, y_test = train_test_split(
        images, labels.astype(np.int32), test_size=DIGITS_TEST_FRACTION, random_state=SEED, stratify=labels
    )
    return x_train, y_train, x_test, y_test


def face_like(count: int, *, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draws 24x24 colour crops: half of them a skin-toned ellipse with eyes and mouth, half clutter.

    Returns:
        Images `[count, 24, 24, 3]` in [-1, 1] as MTCNN normalizes them, labels (1 = face), and the
        face box offsets `[count, 4]` relative to the crop (zero for clutter).
    """
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:24, 0:24].astype(np.float32)
    images = np.empty((count, 24, 24, 3), np.float32)
    labels = (np.arange(count) % 2).astype(np.int32)
    boxes = np.zeros((count, 4), np.float32)
    for index in range(count):
        low, high = rng.uniform(0, 255, (2, 3))
        angle = rng.uniform(0, 2 * np.pi)
        ramp = (np.cos(angle) * rows + np.sin(angle) * columns) / 34.0
        crop = low + (high - low) * ((ramp - ramp.min()) / np.ptp(ramp))[..., None]
        centre_y, centre_x = 11.5 + rng.uniform(-3, 3, 2)
        height, width = rng.uniform(8, 11), rng.uniform(6, 9)
        if labels[index]:
            tone = np.array([224, 172, 140], np.float32) * rng.uniform(0.45, 1.1)
            crop[((rows - centre_y) / height) ** 2 + ((columns - centre_x) / width) ** 2 < 1] = tone
            for side in (-1, 1):
                eye = (rows - centre_y + 0.3 * height) ** 2 + (columns - centre_x + side * 0.4 * width) ** 2
                crop[eye < 3.0] = tone * 0.25
            mouth = (np.abs(rows - centre_y - 0.5 * height) < 1) & (np.abs(columns - centre_x) < 0.4 * width)
            crop[mouth] = tone * [0.7, 0.3, 0.3]
            boxes[index] = (
                np.array([centre_y - height, centre_x - width, centre_y + height - 23, centre_x + width - 23])
                / 24.0
            )
        else:
            for _ in range(3):
                top, left = rng.integers(0, 18, 2)
                tall, wide = rng.integers(2, 10, 2)
                crop[top : top + tall, left : left + wide] = rng.uniform(0, 255, 3)
        crop += rng.normal(0, 8, crop.shape)
        images[index] = (np.clip(crop, 0, 255) - 127.5) / 128.0
    return images, labels, boxes


def sentences(count: int, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws sentences of word ids: a third of the words are on topic, the rest come from anywhere.

    Returns:
        Ids `[count, SENTENCE_LENGTH]` int32 and topics `[count]` int32.
    """
    rng = np.random.default_rng(seed)
    topics = rng.integers(0, TOPICS, count)
    words = rng.integers(0, VOCABULARY, (count, SENTENCE_LENGTH))
    on_topic = rng.random(words.shape) < 1 / 3
    words = np.where(on_topic, words - words % TOPICS + topics[:, None], words)
    return words.astype(np.int32), topics.astype(np.int32)


def save_npz(path: Path, **arrays: np.ndarray) -> None:
    """Writes arrays compressed; NumPy stamps no time into the ZIP, so equal arrays give equal bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]
