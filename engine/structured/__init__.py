"""Structured output: texts that follow a JSON schema, an expression or a grammar.

The library llguidance (extra `schema`) says which tokens may come next. It is imported when a
grammar is made, and not before.

grammar   `Grammar`: what a text must follow, checked when it is made
matcher   a grammar in the tokens of a vocabulary, and how far one text has followed it
schemas   JSON schemas, as the library takes them
library   llguidance, its limits, and how a grammar of strangers is read safely
"""
