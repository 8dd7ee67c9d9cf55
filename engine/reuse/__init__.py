"""Tokens that were computed once, used again.

prompt_reuse  makes a context begin with a new prompt, and keeps what both have in common
recompute     which tokens of such documents are computed anew in a context
library       a folder of documents whose keys and values any context can take
"""
