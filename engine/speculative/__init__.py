"""Guesses at the next tokens of a text, which one pass of the model then checks.

drafter  the drafters, and the methods that each has
auto     ngram, which pauses where its guesses do not come true
ngram    looks up how the text went on the last time that its last tokens came

A model that guesses for another one is `lariat.runtime.draft_model`.
"""
