"""What is trained: the encoders (`transformer`, `audiontt`, `conformer`, `convnets`) and the parts
they share (`layers`).

In: normalised log-mel (B, T, F). Out: embeddings, with every intermediate that the method or a
probe needs. `encoders` alone knows which kinds there are; everything else asks it.
"""
