"""The thought machinery: a decoder that thinks after every token. It knows nothing of files, DVC or experiments.

Read in this order: `layout` (what a thought row is), `attention` (what it may see, and three ways to compute that),
`views` (how a decoder's layers are made to look so), `head` (losses without logits), `decoder` (any transformers
decoder), `sampler` (think), `mixing` (talk), `objective` (learn), `slices` (some positions at a time), `step` (one
training step), `model` (all of it as a `PreTrainedModel`), `generation` (one thought at a time).
`adapters` stands apart: less of the decoder to train.

Shapes, everywhere in this package:

    B  texts                          K  sampled tokens of a thought
    N  positions (tokens) of a text   A  lookahead: true tokens predicted after a thought
    R  thoughts at a position         T  tokens of a thought row: K + 2 + (A - 1)
    P  positions that think: all N when training, the newest one when generating
    S  tokens of each row that one pass feeds: T, or 1 when sampling token by token
    D  hidden size   V  vocabulary    H  query heads   G  key-value heads   C  size of a head

Where thought rows are flattened into one axis, they are in the order (R, P, S).

Source: Zelikman et al. 2024, "Quiet-STaR", arXiv 2403.09629, and the code its authors released.
"""
