"""The thought machinery: a decoder that thinks after every token. It knows nothing of files, DVC or experiments.

Read in this order: `layout` (the tokens of a thought row), `attention` (what a row attends to, and three ways to
compute that), `views` (how a decoder's layers are made to do so), `decoder` (any transformers decoder), `sampler` and
`thinking` (think and talk), `mixing`, `head` (losses without logits), `objective` and `quiet_star` (the loss),
`gate` (where to think), `places`, `slices` and `step` (one training step), `model` (all of it as a
`PreTrainedModel`), `generation` (one thought at a time).

Imports are `from .x import y`, as transformers' trust_remote_code loader follows only these, and within one folder.

Shapes, everywhere in this package:

    B  texts                          K  sampled tokens of a thought
    N  positions (tokens) of a text   A  lookahead: true tokens predicted after a thought
    R  thoughts at a position         T  tokens of a thought row: K + 2 + (A - 1)
    P  positions of each text that think in one pass: all that may or some (training), the answer's (evaluation), the
       newest (generation)
    S  tokens of each row that one pass feeds: T, 1 while sampling, 2 to end a thought
    m  rows that are run together: of a chunk of logits, or of thoughts, some of the B * R * P (`rows.Packing`)
    L  tokens so far  M  newest tokens, or flattened rows  p  positions of a slice
    D  hidden size   V  vocabulary    H  query heads   G  key-value heads   C  size of a head

Where thought rows are flattened into one axis, their order is (R, P, S).

Source: Zelikman et al. 2024, "Quiet-STaR", arXiv 2403.09629, and the code its authors released.
"""
