"""Configs: every file has get_config(variant) and VARIANTS; a config inherits by calling its
parent."""
