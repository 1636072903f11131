"""A small residual network with BatchNorm, in Flax Linen."""

import functools
import operator
from collections.abc import Sequence
from typing import Final

import flax.linen as nn
import jax
import jax.numpy as jnp

WIDTHS: Final = (16, 32, 64)
"""The channels of the three stages; each but the first halves the image."""


class ResNet(nn.Module):
    """A stem, one post-activation residual block for each stage, a linear head: 77,754 parameters.

    Attributes:
      classes: The number of logits.
    """

    classes: int = 10

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """The logits ``(n, classes)`` of images ``(n, height, width, channels)``."""
        x = nn.relu(_norm("stem_norm", train=train)(_conv(WIDTHS[0], 3, 1, "stem")(images)))
        for index, width in enumerate(WIDTHS):
            x = Block(width, 1 if index == 0 else 2, name=f"block{index + 1}")(x, train=train)
        return nn.Dense(self.classes, name="head")(jnp.mean(x, axis=(1, 2)))


class Block(nn.Module):
    """``relu(shortcut(x) + norm(conv(relu(norm(conv(x))))))``.

    Attributes:
      width: The channels of its output.
      stride: By how much it shrinks the image.
    """

    width: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """The block's output."""
        norm = functools.partial(_norm, train=train)
        y = nn.relu(norm("norm1")(_conv(self.width, 3, self.stride, "conv1")(x)))
        y = norm("norm2")(_conv(self.width, 3, 1, "conv2")(y))
        if x.shape != y.shape:
            x = norm("post")(_conv(self.width, 1, self.stride, "project")(x))
        return nn.relu(x + y)


def _norm(name: str, *, train: bool) -> nn.BatchNorm:
    return nn.BatchNorm(use_running_average=not train, momentum=0.9, name=name)


def _conv(width: int, window: int, stride: int, name: str) -> nn.Conv:
    return nn.Conv(
        width,
        (window, window),
        stride,
        use_bias=False,
        conv_general_dilated=_by_products,
        name=name,
    )


def _by_products(
    x: jax.Array,
    kernel: jax.Array,
    strides: Sequence[int],
    padding: str,
    **unused: object,
) -> jax.Array:
    """A convolution as one matrix product for each tap of the kernel.

    ``y[i, j] = sum_uv x[s*i + u, s*j + v] @ kernel[u, v]``. All seeds are trained at once by
    `vmap`, which makes of XLA's own convolution a grouped one, several times slower on CPUs.
    """
    del unused  # undilated, ungrouped, NHWC
    window = kernel.shape[:2]
    pads = jax.lax.padtype_to_pads(x.shape[1:3], window, strides, padding)
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    rows, columns = (
        (size - taps) // stride + 1
        for size, taps, stride in zip(x.shape[1:3], window, strides, strict=True)
    )
    taps = (
        x[:, u : u + rows * strides[0] : strides[0], v : v + columns * strides[1] : strides[1]]
        @ kernel[u, v]
        for u in range(window[0])
        for v in range(window[1])
    )
    return functools.reduce(operator.add, taps)
