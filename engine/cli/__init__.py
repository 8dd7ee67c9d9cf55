"""The command line: `main` parses and reports errors, and each command is a file of its own.

Commands:   generate, chat, chunk, info, tokenize, quantize, perplexity, bench (bench_output prints
            its results)
main        chooses the command; errors to sentences and exit codes
usage       the parser, and flags that fill a configuration class
Flags that several commands share:
    model_file, prompt, engine_flags, sampling_flags, and reuse (--prompt-cache, --library)
console     output, progress bars, what a terminal may show
terminal    input of chat: lines of a pipe, or typed ones with a history
report      lines about a run: settings and speed
"""
