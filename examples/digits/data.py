"""Handwritten digits, scanned from 43 people's forms, that come with scikit-learn."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split


class Digits(NamedTuple):
    """Images ``(n, 8, 8, 1)`` between 0 and 1, labels ``(n,)``, split once for all runs."""

    train_images: jax.Array
    train_labels: jax.Array
    test_images: jax.Array
    test_labels: jax.Array


def digits() -> Digits:
    """The 1,797 scans; a quarter, drawn evenly from each digit, is held out for the test."""
    scans, labels = load_digits(return_X_y=True)
    split = train_test_split(
        scans.reshape(-1, 8, 8, 1) / 16,
        labels,
        test_size=0.25,
        stratify=labels,
        random_state=0,
    )
    train_images, test_images, train_labels, test_labels = split
    return Digits(
        jnp.asarray(train_images, jnp.float32),
        jnp.asarray(train_labels, jnp.int32),
        jnp.asarray(test_images, jnp.float32),
        jnp.asarray(test_labels, jnp.int32),
    )
