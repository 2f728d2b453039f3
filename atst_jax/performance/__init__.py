"""The cost of a step: operations, bytes and time, on this machine or on chips that are not here.

In: a resolved recipe. Out: lines and tables for people.
"""
