"""Scripts that measure one thing and print a Markdown table.

starts         from the start of a process to its first token, with prepared weights and without
depths         decoding and prompts with raw and roped keys, in turns, at any depth
windows        decoding at depth with attention windows, and with windows ignored
cache_speed    decoding with each type of keys and values
cache_quality  how far predictions move with each type of keys and values
shift          what it costs to delete tokens at the beginning of a full context
chunks         a chunk library: recall, and time to the first token
reuse          reused documents: answers, and what is computed, by method of recomputing
endless        perplexity of generation without end
rope_read      one fact in long prose: which RoPE finds it when it is chosen as keys are read
edits          an edit in the middle: what becomes of the text behind it, and what repair costs
stretch        contexts longer than the training: recall and perplexity by RoPE scaling
loops          instructions and cycles of inner loops, for processors that are not at hand
weight_types   each weight type beside llama.cpp: predictions and speed
speculation    decoding with each way to guess, on text that repeats and text that does not
load           a server under many clients: throughput, gaps between tokens, first tokens
batch_memory   resident memory of `lariat batch` as its rows grow in number
batch_speed    `lariat batch` beside `lariat bench --sequences`, and llama.cpp row by row
cluster        a batch on 1 to 1,000 nodes, simulated, and two real processes beside it
evaluation     lm-evaluation-harness: accuracy and log-likelihoods beside transformers
tile_counts    instructions a multiply-add takes in the matmul tiles of each set
agreement      logits and greedy tokens beside llama.cpp's, for each architecture
"""
