"""Thought attention: rows of thoughts over a text that they share, and over their own earlier tokens.

One interface, three ways to compute the same numbers: `reference` (one softmax over everything, in plain operations),
`blocked` (CPU: the text in blocks by flash attention, merged with a row's own tokens by log-sum-exp) and `flex` (CUDA:
FlexAttention). `pick` chooses; `Rows` says what a token may see.

    B  texts   N  tokens of a text   R  thoughts   P  positions   S  row tokens in this pass
    H  query heads   G  key-value heads   C  size of a head   (the whole legend: pipeline/thought/__init__.py)
"""
