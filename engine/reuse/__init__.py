"""Tokens that were computed once, used again.

prompt_reuse   makes a context begin with a new prompt, and keeps what both have in common
recompute      which tokens of such documents are computed anew in a context
rearrange      edits that turn a context into another prompt
kept_contexts  contexts of earlier prompts, for prompts that have text in common with them
library        a folder of documents whose keys and values any context can take
"""
