"""The demo model and its recipe. The engine needs nothing of it.

    language.py   dice, and a template language with tenses          (no dependencies)
    world.py      people, places and things of the stories
    plots.py      the problems of the stories and how they are solved
    stories.py    puts a story together
    recall.py     passages with facts to remember, and their questions
    corpus.py     documents by split and number; writes the corpus   python -m models.corpus
    vocabulary.py the sentencepiece tokenizer                        python -m models.vocabulary
    rows.py       rows of token ids for training, by step
    network.py    the LLaMA in PyTorch
    train.py      training, resumable                                python -m models.train
    export.py     checkpoint to GGUF, F16 and Q4_0                   python -m models.export
    evaluate.py   perplexity, recall and stories through the engine  python -m models.evaluate
    peer.py       negative log-likelihoods by llama.cpp, to compare  python -m models.peer

README.md is the model card and has the commands in order.
"""
