"""Tools around a model: they use the engine, and the engine does not need them.

quantize        writes a model's file again with weights of fewer bits, as llama-quantize does
quantize_types  which tensor gets which type then
importance      how large the inputs of a model's matrices are, for quantize
inspection      what a GGUF file is, and why it does not run here
perplexity      how well a model predicts a text, and how much the predictions of two runs differ
"""
