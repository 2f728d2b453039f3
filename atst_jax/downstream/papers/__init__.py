"""The papers' tasks, rates and published tables, and our results in their rows and columns.

In: results.json of evaluations. Out: tables as data.
"""
