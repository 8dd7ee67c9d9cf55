"""Tokens that were computed once, used again.

prompt_reuse  makes a context begin with a new prompt, and keeps what both have in common
library       a folder of documents whose keys and values any context can take
"""
