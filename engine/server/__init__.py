"""`lariat serve`: OpenAI's and Anthropic's APIs over HTTP. docs/server.md says how to use it.

run         listens, loads the model meanwhile, stops in order
app         layers and routes; openapi describes them
security    hosts, origins, keys
routes      all endpoints, a line for each file of them:
    chat (and arranged), responses, messages, completions, embeddings, contexts, documents, models,
    tokens, health (with metrics and version), page (the web page, whose files are in static/)
held_contexts  contexts that clients edit, and their segments
endpoint    what a route is, and how each request is answered: body, sse, log
service     the model and what requests share: admission (the queue), metrics
generation  the streams of a request; tasks
options     limits and rights

Bodies are in `lariat.protocol`. A new route is an `Endpoint` in a file, and a line in `routes`.
"""
