"""How each leaf meets the data: a third loop over the same tape, which imposes nothing.

A leaf has the role of its *furthest use*. Seen through reshapes, casts, slices and transposes it is
still that leaf, and so is a function of leaves alone, entry by entry. Where it meets the data entry
by entry it is a gain (multiplied) or a bias (added) for the time being; contracted with data, then
or before, it is a weight: ``x @ (w * mask + noise)``. What can be told apart from that is

- ``(q * g) @ k``, where `g` is the same along an axis that is summed over or put out: a gain;
- a lookup, which is a contraction with an indicator, ``one_hot(i) @ table``: an embedding. If no
  data have a part in the indicator, a permutation, say, it is still the leaf;
- a product that is read otherwise than by sums, as by a LayerNorm: a gain, though it is summed too;
- a sum that varies along an axis that no leaf's output made: a table of positions, an embedding;
- an equation in which a local scale cancels, ``(x - mean) * rsqrt(var)``: a normaliser. The first
  gain folded into it or following it is its scale, the bias after that its bias.

In this order:

- `belonging`: masks and noise that are a leaf's own; `views`: what is remembered of a value on the
  way, and what of a leaf;
- `dimensions`: where a leaf's axes are, and what a contraction does to them;
- `gauges` and `trails`: the local scale, of joined values in `pieces`, and where it cancels;
  `gradients`: what moves with leaves;
- `record`: what was found so far; `entrywise`, `contractions`, `lookups` and `reductions`: what
  operations do to it, by their kind; `reading`: the loop; `positions`: heads, inputs and hidden
  weights;
- `experts`: biases and gains that a router looks up; `parts`: which columns of a fused leaf make
  one matrix.
"""
