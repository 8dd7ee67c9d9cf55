"""Tokenizers: text to token ids and back, as llama.cpp does it. They need a file's metadata only.

tokenizer      `Tokenizer`: encode, decode, mark special tokens in a user's text
vocabulary     tokens, their types, special tokens, and how these are cut out of a text
sentencepiece  merging for files with `tokenizer.ggml.model` = llama
bpe            merging for files with `tokenizer.ggml.model` = gpt2
"""
