"""Tools that every package needs: flags, errors, configs, files and stores, logs, pages.

In: text, paths, values. Out: checked values, files that are written whole or not at all, messages
for people. Nothing here is about the method.
"""
