"""The built-in plugins. They import only ftcore's public names and are found through entry points, like any other.

Modules import torch and its kin inside functions: naming a plugin costs no more than reading its options.
"""
