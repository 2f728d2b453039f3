"""What a step costs: operations, bytes, speed on this machine, and on chips that are not here.

In: a resolved recipe. Out: lines and tables for people.
"""
