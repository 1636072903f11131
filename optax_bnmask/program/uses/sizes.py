"""Sums of sizes, each of which is a size of several things at once. Knows no JAX.

With the unknowns ``u`` of `a` and ``v`` of `b`, ``s = mean(a**2) + mean(b**2)`` has an unknown
``w`` of its own, which is a size of both in the power 2: ``a / sqrt(s)``, of the gauge ``u - w/2``,
does not scale if all do. Nothing follows for ``a / sqrt(mean(b**2))``: ``u`` and ``v`` stay apart.
"""

from collections.abc import Container, Sequence, Set

from optax_bnmask.program.equations import Form, Number


class Sizes:
    """What the unknowns of sums of sizes are sizes of.

    Attributes:
      of: For each such unknown those that it is a size of, and in which power.
    """

    def __init__(self) -> None:
        self.of: dict[int, tuple[Set[int], Number]] = {}

    def common(
        self, forms: Sequence[Form], apart: Sequence[Container[int]]
    ) -> tuple[Set[int], Number] | None:
        """What a sum would be a size of, and in which power; `None` if it is of no one power.

        Args:
          forms: The gauges of the summands.
          apart: Unknowns that it must not be a size of.
        """
        parts, powers = set[int](), set[Number]()
        for form in forms:
            for u, c in form.items():
                own, power = self.of.get(u, ({u}, 1))
                parts |= own
                powers.add(c * power)
            if len(form) != 1 or any(u in known for u in form for known in apart):
                return None
        return (parts, powers.pop()) if len(powers) == 1 else None

    def rest(self, form: Form) -> Form:
        """What remains of a product once such sizes cancel what they are sizes of."""
        for w in self.of.keys() & form.keys():
            parts, power = self.of[w]
            found = form.keys() & parts
            if found and not sum(form[u] for u in found) + power * form[w]:
                form = {u: c for u, c in form.items() if u != w and u not in found}
        return form
