"""The two data sets, each split once for all runs, and the network that learns them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from mnist1d.data import get_dataset_args, make_dataset
from sklearn.model_selection import train_test_split

from examples.digits.data import digits
from examples.digits.model import ResNet


class Split(NamedTuple):
    """Inputs ``(n, *places, 1)`` and labels ``(n,)``."""

    inputs: jax.Array
    labels: jax.Array


class Task(NamedTuple):
    """A data set and how it is learned.

    `train` makes the weights, `validation` the choice of rates, `test` the figures.
    """

    name: str
    network: ResNet
    train: Split
    validation: Split
    test: Split
    batch_size: int
    epochs: int


def digits_task() -> Task:
    """The 1,797 scans of scikit-learn's handwritten digits: 1,077 / 270 / 450."""
    data = digits()
    parts = train_test_split(
        np.asarray(data.train_images),
        np.asarray(data.train_labels),
        test_size=270,
        stratify=np.asarray(data.train_labels),
        random_state=0,
    )
    train_inputs, inputs, train_labels, labels = map(jnp.asarray, parts)
    return Task(
        "digits",
        ResNet(),
        Split(train_inputs, train_labels),
        Split(inputs, labels),
        Split(data.test_images, data.test_labels),
        batch_size=64,
        epochs=40,
    )


def mnist1d_task() -> Task:
    """MNIST-1D (Greydanus and Kobak, 2020, arXiv:2011.14439), from its own generator.

    4,000 sequences of length 40 to train on, as published; 4,000 and 12,000 instead of 1,000 to
    validate and to test, so that what they tell is about policies rather than about the sample.
    """
    settings = get_dataset_args()
    settings.num_samples, settings.train_split = 20_000, 0.2
    data = make_dataset(settings)
    held_out = Split(*_arrays(data["x_test"], data["y_test"]))
    return Task(
        "MNIST-1D",
        ResNet(window=(3,)),
        Split(*_arrays(data["x"], data["y"])),
        Split(*(part[:4000] for part in held_out)),
        Split(*(part[4000:] for part in held_out)),
        batch_size=128,
        epochs=40,
    )


def _arrays(inputs, labels):
    return jnp.asarray(inputs, jnp.float32)[..., None], jnp.asarray(labels, jnp.int32)


TASKS = {"digits": digits_task, "mnist1d": mnist1d_task}
