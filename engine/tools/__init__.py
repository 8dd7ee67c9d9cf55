"""Tools around a model: they use the engine, and the engine does not need them.

quantize    writes a model's file again with weights of fewer bits, as llama-quantize does
perplexity  how well a model predicts a text, and how much the predictions of two runs differ
"""
