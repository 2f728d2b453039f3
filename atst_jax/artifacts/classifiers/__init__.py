"""Classifiers: an exported encoder with a head that gives labels.

In: a trained head, scores of validation clips. Out: the section `head` of an export, probabilities.
"""
