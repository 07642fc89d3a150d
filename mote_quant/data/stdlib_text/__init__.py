"""The text of the installed Python standard library: real text that every machine already has."""
