"""Flags of llama.cpp's programs that no command of Lariat has, and the reason of each.

People bring their command lines along. A refusal that gives the reason saves them the search.

Source: https://github.com/ggml-org/llama.cpp (common/arg.cpp, tools/llama-bench).
"""

from __future__ import annotations

_REASONS = {
    "it is for GPUs, and Lariat runs on the processor": """
        -ngld --gpu-layers-draft --n-gpu-layers-draft -devd --device-draft
        -ngl --gpu-layers --n-gpu-layers -sm --split-mode -ts --tensor-split -mg --main-gpu -dev
        --device --list-devices -nkvo -kvo --kv-offload --no-kv-offload -ot --override-tensor -cmoe
        --cpu-moe -ncmoe --n-cpu-moe -fit --fit -fitt --fit-target -fitc --fit-ctx --op-offload
        --no-op-offload -nopo --no-host -embd -bs --backend-sampling""",
    "attention is always computed in one pass, without a matrix of scores": "-fa --flash-attn",
    "weights are always arranged anew when a model is loaded": "-nr --repack --no-repack -rtr",
    "weights are in ordinary memory once they are loaded": "-mlock --mlock",
    "the flag here is --no-mmap": "-mmp --mmap -lm --load-mode -dio -ndio --direct-io "
    "--no-direct-io",
    "models come from files (-m) and from the Hugging Face Hub (-hf)": """
        -mu --model-url -dr --docker-repo""",
    "models in the cache are shown by `lariat list`": "-cl --cache-list",
    "conversations are `lariat chat`, and texts that go on are `lariat generate`": """
        -cnv -no-cnv --conversation --no-conversation -i --interactive -if --interactive-first -ins
        --instruct""",
    "perplexity is measured by `lariat perplexity`": "-ppl --perplexity --all-logits",
    "templates are always Jinja": "--jinja --no-jinja",
    "threads run where the system puts them; taskset or numactl limits them": """
        -C --cpu-mask -Cr --cpu-range --cpu-strict -Cb --cpu-mask-batch -Crb --cpu-range-batch
        --cpu-strict-batch --prio --prio-batch --poll --poll-batch --numa""",
    "a draft model has the threads and context of the other one, and an f16 cache": """
        -td --threads-draft -tbd --threads-batch-draft -cd --ctx-size-draft -ctkd
        --cache-type-k-draft -ctvd --cache-type-v-draft""",
    "a draft model guesses as many tokens as are likely, up to --draft-max": """
        --draft-min --draft-p-min --draft-p-split""",
    "draft models come from files (-md)": "-hfd --hf-repo-draft",
    "the flag here is --spec": "--spec-type --spec-default",
    "adapters and control vectors are not supported": """
        --lora --lora-scaled --control-vector --control-vector-scaled
        --control-vector-layer-range""",
    "this way of sampling is not supported": """
        --samplers --sampler-seq --sampling-seq --top-nsigma --top-n-sigma --xtc-probability
        --xtc-threshold --dry-multiplier --dry-base --dry-allowed-length --dry-penalty-last-n
        --dry-sequence-breaker --adaptive-target --adaptive-decay --dynatemp-range --dynatemp-exp
        --mirostat --mirostat-lr --mirostat-ent""",
    "images and sound are not supported": """
        -mm --mmproj -mmu --mmproj-url --no-mmproj --image --audio --video""",
    "the flag here is --temp": "--temperature",
    "the flag here is --typical": "--typical-p",
    "escapes are read only with -e": "--no-escape",
    "the context is not shifted without --context-shift": "--no-context-shift",
    "the prompt is shown without it": "--display-prompt",
    "only -q makes the output shorter, and nothing makes it longer": """
        -v --verbose -lv --verbosity --verbose-prompt --log-disable --log-file --log-colors
        --log-prefix --log-timestamps --log-verbosity --perf --no-perf --show-timings
        --no-show-timings --color -co --simple-io""",
    "keys outside of attention windows stay unless --swa-window-only is given": "--swa-full",
    "a model needs no warm-up here": "--warmup --no-warmup",
    "one prompt is computed at a time": "-np --parallel -cb --cont-batching -ns --sequences",
}
_REASON_OF = {flag: reason for reason, flags in _REASONS.items() for flag in flags.split()}


def reason(flag: str) -> str:
    """Half a sentence on a flag of llama.cpp that is missing here; "" for any other flag."""
    return _REASON_OF.get(flag, "")
