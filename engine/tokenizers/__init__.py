"""Tokenizers: text to token ids and back, as llama.cpp does it. They need a file's metadata only.

tokenizer      `Tokenizer`: encode, decode, mark special tokens in a user's text
vocabulary     tokens, their types, special tokens, and how these are cut out of a text
sentencepiece  merging for files with `tokenizer.ggml.model` = llama
bpe            byte pair encoding: what the next two have in common
short_texts    the same for prompts of a few words, without the tables of a library
byte_level     merging for files with `tokenizer.ggml.model` = gpt2
spaced         merging for files with `tokenizer.ggml.model` = gemma4, and some of gpt2
pre_tokenizers how text is cut into words before, by `tokenizer.ggml.pre`
"""
