"""Output on the terminal: names, paths and texts of a user are printed as they are."""

from functools import partial

from rich.console import Console

plain_console = partial(Console, markup=False, emoji=False)
"""A console on which `[x]` and `:x:` are letters: rich would read them as its markup, and a closing
tag without an opening one is an error. Colours are given by `rich.text.Text`."""
