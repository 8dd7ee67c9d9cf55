"""Bodies of OpenAI's and Anthropic's APIs, from requests to the engine and back, without a server.

served        a loaded model as clients see it
bodies        JSON, decoded strictly
errors        errors as clients get them
sampling      fields that say how text is chosen
structured    what an answer must follow
logprobs      log-probabilities in two shapes
usage         how an answer ended, and its tokens
conversation  messages and tools
reading       answers as they arrive: thoughts and answer
arranged      conversations about documents: which tokens are computed, moved, taken as they are
Routes: chat, messages and responses (by way of chat), completions, embeddings, contexts (and
documents), models, tokens

For each route `prepare` makes a job of a request (prompts and `SamplingParams`), and the rest makes
bodies of completions.
"""
