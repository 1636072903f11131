"""The demo: a small ResNet on real digits, with decay on everything and with the mask."""

from examples.digits.run import run

__all__ = ["run"]
