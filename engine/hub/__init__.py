"""Models from the Hugging Face Hub: chosen, fetched, and kept in the cache of `huggingface_hub`.

names     OWNER/REPO:TYPE, and which files of a repository that means
client    questions to the Hub, answers as sentences; each file fetched and checked
models    a model by its name: from the Hub, or from the cache without a network
cached    the models that are in the cache

Only `client` and `models` touch a network, and only when a model is asked for by such a name.
"""
