"""Files that `stage=export` copies beside questions for other evaluation frameworks.

They run in the frameworks' environments and import nothing of this package.
"""
