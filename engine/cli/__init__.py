"""The command line: `main` parses and reports errors, and each command is a file of its own.

Commands:   generate, chat, serve, batch, chunk, info, list, tokenize, quantize, prepare, imatrix,
            perplexity, eval, bench (bench_output prints its results, bench_tune is its --tune,
            bench_scaling its --scaling)
main        chooses the command; errors to sentences and exit codes
interrupts  Ctrl-C while modules are imported
usage       the parser, and flags that fill a configuration class
llama_cpp_flags  flags of llama.cpp that are missing here, with reasons
Flags that several commands share:
    model_file, prompt, text_windows, engine_flags, sampling_flags, template_flags, grammar_flags,
    rope_read, and reuse (--prompt-cache, --library)
console     output, progress bars, what a terminal may show
terminal    input of chat: lines of a pipe, or typed ones with a history
report      lines about a run: settings and speed
"""
