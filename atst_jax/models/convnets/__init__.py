"""Convolutional networks of other papers: `efficientnet`, `resnet`, `vggish`.

In: normalised log-mel (B, T, F). Out: embeddings (B, D) and vectors over time, as of every
`Encoder`.
"""
