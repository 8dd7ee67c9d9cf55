"""From requests to steps of the model.

engine_thread  one thread that steps the runner for everybody
runner     one loaded model with its cache and lock: schedule, run, sample
scheduler  decides each step: what to compute, to evict, to preempt
draft_model  a smaller model that guesses the next tokens of requests
drafting   which requests compute guesses beside their last token
pace       how long steps take, so that the next one is bounded in time
request    the state of one request, and the text that comes of it
timings    seconds and counts of one completion
batch      parts of requests, laid out as the flat arrays of a forward pass
sampler    chooses the next token from logits
scoring    how likely a continuation is
stream     the text of one completion, piece by piece
stages     those of one request: processors, grammar, ends that are held back
logprobs   log-probabilities of tokens, reduced from logits at once
rope_choice  which RoPE a question is read with
context    tokens in the cache that a user edits
order      where tokens went in an edit
edits      what was edited, and the tokens behind it that recall it
renewal    tokens of a context that are computed anew before a request's own
placed     documents in a context: plans to place them, and which tokens are recomputed when
threads    how many threads, and on which processors
topology   what these are: threads of a core, nodes, kinds of cores
tuned      how many, as `lariat bench --tune` has found for a model on this machine
"""
