"""How text is cut into words before byte-level BPE merges: what `tokenizer.ggml.pre` names.

Regular expressions find the words, one after the other: each cuts the pieces that the ones before
left. The names and the words are those of llama.cpp, with its habits: where an expression of a
model's maker asks for capitals by Unicode's classes (`\\p{Lu}`), llama.cpp takes all letters.

Source: https://github.com/ggml-org/llama.cpp (src/llama-vocab.cpp and src/unicode.cpp; the
expressions here are equal to its hand-written splitters).
"""

from __future__ import annotations

import re
import unicodedata
from itertools import pairwise
from typing import Any, NamedTuple

from lariat.errors import ModelError, quote
from lariat.formats.gguf import GGUFFile
from tokenizers import Regex
from tokenizers.pre_tokenizers import PreTokenizer, Split

_CONTRACTION = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_BLANKS = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_PUNCTUATION = r"[\p{P}$+<=>^~|]+"


def _like_llama3(
    digits: str,
    letters: str = r"[^\r\n\p{L}\p{N}]?\p{L}+",
    contraction: str = f"{_CONTRACTION}|",
    signs: str = _SIGNS,
    blanks: str = _BLANKS,
) -> str:
    return rf"{contraction}{letters}|{digits}|{signs}|{blanks}"


def _by_case(suffix: str, digits: str, letters: str = r"\p{L}") -> str:
    """Words begin at a capital. Letters outside ASCII count as both cases, as in llama.cpp."""
    upper, lower = rf"[{letters}&&[^a-z]]", rf"[{letters}&&[^A-Z]]"
    words = "|".join(
        rf"[^\r\n\p{{L}}\p{{N}}]?{upper}{n_upper}{lower}{n_lower}{suffix}"
        for n_upper, n_lower in (("*", "+"), ("+", "*"))
    )
    return rf"{words}|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_BLANKS}"


def _with_marks(digits: str) -> str:
    """Letters and combining marks, in any case, with the contraction behind them."""
    words = rf"[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+{_CONTRACTION}?"
    return rf"{words}|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_BLANKS}"


# Letters of scripts that have capitals, as DeepSeek's expression lists them.
_CASED_LETTERS = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293"
    "\u0295-\u02af\u0370-\u0373\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c"
    "\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5"
    "\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77"
    "\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59"
    "\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc"
    "\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107"
    "\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139"
    "\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee"
    "\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e"
    "\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f"
    "\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2"
    "\U000118a0-\U000118df\U0001e900-\U0001e943"
)
# Most other scripts, without the blanks in these ranges.
_UNCASED = "[[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]&&[^\\s]]+"
_KANA_AND_HAN = "[\u4e00-\u9fa5\u3040-\u30ff]+"
# Chinese, Japanese and the scripts of south-east Asia, as AFMoE's expression lists them.
_ASIAN = (
    "[\u4e00-\u9fff\u3400-\u4dbf\u8c48-\ufaff\u3040-\u30ff\uff65-\uff9f\u2f00-\u2fdf"
    "\u0e40-\u0e7f\u0e80-\u0eff\u1780-\u17ff\u1000-\u109f\uaa60-\uaa7f\ua9e0-\ua9ff"
    "\uac00-\ud7af\u1100-\u11ff]+"
)
_YOUTU = (
    "[\uac00-\ud7a3\u3131-\u318e]+"
    "|[\uff01\u2026\u201c\u201d\u2018\u2019\u2014\uff1a\uff1b\uff0c\u3001-\u303f\ufe30-\ufe4f]+"
    f"|[\u3105-\u312f]+|{_KANA_AND_HAN}"
)
_HAN = (
    "\u4e00-\u9fff\u3400-\u4dbf\U00020000-\U0002a6df\U0002a700-\U0002ebef\uf900-\ufaff"
    "\U0002f800-\U0002fa1f"
)
_KIMI = (
    rf"[{_HAN}]+|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}&&[^{_HAN}]]+{_CONTRACTION}?"
    rf"|\p{{N}}{{1,3}}|{_SIGNS}|{_BLANKS}"
)
_DEEPSEEK_WORDS = r"[!-/:-@\[-`{-~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
_DEEPSEEK = rf"{_DEEPSEEK_WORDS}| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_BLANKS}"
# A word of Bloom is all but blanks and these signs.
_BLOOM = " ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"
_CHAMELEON = (
    "<sentinel:[0-9]+>",
    "IMGIMG[A-I]{1,4}Z",
    r"[\t\n]|    |  ",
    r"\p{N}",
    r"[\p{P}!-/:-@\[-`{-~]",
    _GPT2,
)
_JAIS2_BLANKS = "|".join(
    [
        r"\s*[\r\n]+",
        *(rf"\s{{{n}}}(?!\S)" for n in ("512", "256", "128", "64", "32", "16", "8", "4", "1,2")),
        r"\s",
    ]
)
_LINES = r"[^\n]+|\n+"

# Digits in threes that are counted from the end, which no expression does in linear time. Those of
# any script: the first group stays with the text before it, as in llama.cpp. Or those of ASCII
# alone, apart from what is no number.
THREES, ASCII_THREES = "threes", "threes of ASCII"

# A place where a word begins in any text, whatever follows: behind a letter or digit.
_SEAM = r"(?<=[A-Za-z0-9])[ \n]"


class Scheme(NamedTuple):
    """How text is cut into words, and what else depends on `tokenizer.ggml.pre`.

    `expressions` are used one after the other. `seam` finds places where a word begins whatever
    stands around: text may be cut there. `bos`: the begin token where the file names none.
    """

    expressions: tuple[str, ...]
    add_bos: bool = False
    ignore_merges: bool = False  # a word that is a token is not merged
    bos: int | None = 11  # the only special token of models like GPT-2 when files did not say
    seam: str = _SEAM

    def steps(self) -> list[PreTokenizer]:
        """The steps of `tokenizers` that cut a text into words."""
        steps: list[PreTokenizer] = []
        for expression in self.expressions:
            if expression in (THREES, ASCII_THREES):
                ascii_alone = expression == ASCII_THREES
                where = "isolated" if ascii_alone else "merged_with_previous"
                steps.append(Split(Regex(r"\p{N}+"), where))
                # A slice of a piece takes as long as the piece, so long numbers are cut in steps.
                for n_digits in (3 << 14, 3 << 9, 3 << 4, 3):
                    steps.append(PreTokenizer.custom(_Groups(n_digits, ascii_alone)))
            else:
                steps.append(Split(Regex(expression), "isolated"))
        return steps


class _Groups:
    """Cuts numbers into groups of digits from the end: 1234567 in threes is 1, 234 and 567.

    A piece that it gets is a number, or ends in one, or has none.
    """

    def __init__(self, n_digits: int, ascii_alone: bool) -> None:
        self._n_digits, self._ascii_alone = n_digits, ascii_alone

    def pre_tokenize(self, text: Any) -> None:
        """Called by `tokenizers`."""
        text.split(self._cut)

    def _cut(self, _: int, piece: Any) -> list[Any]:
        text = str(piece)
        start = stop = len(text)
        while start and unicodedata.category(text[start - 1]).startswith("N"):
            start -= 1
        n = self._n_digits
        if stop - start < n:
            return [piece]
        if self._ascii_alone:
            runs = [match.span() for match in re.finditer("[0-9]+", text)]
            ends = [end for a, b in runs for end in range(a + (b - a) % n, b, n)]
        else:
            ends = list(range(start + ((stop - start) % n or n), stop, n))
        return [piece[a:b] for a, b in pairwise([0, *ends, stop]) if a < b]


def _named(names: str, scheme: Scheme) -> dict[str, Scheme]:
    return dict.fromkeys(names.split(), scheme)


_LLAMA3 = _like_llama3(r"\p{N}{1,3}")
_QWEN2 = _like_llama3(r"\p{N}")
_GPT4O = _by_case(f"{_CONTRACTION}?", r"\p{N}{1,3}")
SCHEMES = {
    "default": Scheme((_PUNCTUATION, _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
    "falcon": Scheme((r"[\p{P}$+<=>^~|`]+", _GPT2, "[0-9][0-9][0-9]")),
    "deepseek-coder": Scheme((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _UNCASED, r"\p{N}")),
    "deepseek-llm": Scheme(
        (
            r"[\r\n]",
            rf"\s?[{_CASED_LETTERS}]+",
            "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3001\u3002]+",
            r"\s+\z",
            _UNCASED,
            r"\p{N}+",
        )
    ),
    "spark2_5": Scheme(
        (
            r"\p{N}",
            _KANA_AND_HAN,
            rf"{_DEEPSEEK_WORDS}| ?[\p{{P}}\p{{S}}]+|[\r\n]|\s+(?!\S)|\s+",
        )
    ),
    "youtu": Scheme((_YOUTU, _with_marks(r"\p{N}")), ignore_merges=True),
    "kimi-k2": Scheme((_KIMI,)),
    "afmoe": Scheme((THREES, _ASIAN, _DEEPSEEK)),
    "superbpe": Scheme((ASCII_THREES,), seam=r"(?<=[0-9])[ \n]"),
    "tekken": Scheme((_by_case("", r"\p{N}"),), add_bos=True, ignore_merges=True),
    "granite-embed-multi-97m": Scheme(
        (_by_case(f"{_CONTRACTION}?", r"\p{N}{1,3}", r"\p{L}\p{M}"),), ignore_merges=True
    ),
    "minicpm5": Scheme((r"\p{N}{1,3}", _like_llama3(r"\p{N}+")), ignore_merges=True),
    "jais-2": Scheme((_like_llama3(r"\p{N}{1,3}", blanks=_JAIS2_BLANKS),)),
    "qwen35": Scheme(
        (
            _like_llama3(
                r"\p{N}",
                letters=r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+",
                signs=r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*",
            ),
        )
    ),
    "ufakzeka": Scheme((_like_llama3(r"\p{N}", contraction=""),)),
    "seed-coder": Scheme((_like_llama3(r"\p{N}", signs=r" ?[^\s\p{L}\p{N}\r\n]+"),)),
    "exaone-moe": Scheme(
        (
            _like_llama3(
                r"\p{N}",
                letters=r"[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+",
                signs=r" ?[^\s\p{L}\p{N}]+[\r\n/]?",
                blanks=r"\s*[\r\n]|\s+(?!\S)|\s+",
            ),
        ),
        seam=r"(?<=[0-9])[ \n]|(?<=[A-Za-z])\n",  # single letters with blanks are one word
    ),
    "laguna": Scheme((_LINES, _QWEN2)),
    "viking": Scheme((_BLOOM, r"\p{N}")),
    "chameleon": Scheme(_CHAMELEON, add_bos=True),
    "chatglm-bpe": Scheme((_LLAMA3,), bos=None),
    **_named("glm4 glm5", Scheme((_LLAMA3,), ignore_merges=True, bos=None)),
    **_named("poro-chat bloom gpt3-finnish", Scheme((_BLOOM,))),
    **_named(
        "bailingmoe bailingmoe2 llada-moe",
        Scheme((_like_llama3(r"\p{N}", blanks=r"\s*[\r\n]|\s+(?!\S)|\s+"),)),
    ),
    **_named("tiny_aya cohere2moe", Scheme((THREES, _with_marks(r"\p{N}{1,3}")))),
    **_named(
        "deepseek-v3 hunyuan-dense joyai-llm hy_v4",
        Scheme((r"\p{N}{1,3}", _KANA_AND_HAN, _DEEPSEEK)),
    ),
    **_named("dbrx smaug-bpe", Scheme((_LLAMA3,))),
    **_named(
        "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano",
        Scheme((_LLAMA3,), add_bos=True, ignore_merges=True),
    ),
    **_named("gpt-4o llama4 kanana2 talkie minimax-m2", Scheme((_GPT4O,))),
    **_named(
        "qwen2 deepseek-r1-qwen megrez kormo hunyuan stablelm2 solar-open f2llmv2 grok-2",
        Scheme((_QWEN2,)),
    ),
    **_named(
        "smollm starcoder refact command-r codeshell exaone minerva-7b mellum2",
        Scheme((r"\p{N}", _GPT2)),
    ),
    **_named(
        "gpt-2 phi-2 mpt olmo jais trillion exaone4 gigachat a.x-4.0 mellum granite-docling"
        " modern-bert roberta-bpe jina-es jina-de jina-v1-en jina-v2-es jina-v2-de jina-v2-code",
        Scheme((_GPT2,)),
    ),
}


# Vocabularies whose words are lines, see `lariat.tokenizers.spaced`.
SPACED = ("gemma4", "granite-embed-multi-311m", "sarvam-moe")


def scheme_of(gguf: GGUFFile) -> Scheme:
    """The scheme that `tokenizer.ggml.pre` names; older files without the key get the default.

    ModelError for a name that nobody knows.
    """
    name = gguf.get_str("tokenizer.ggml.pre", default="default")
    if name not in SCHEMES:
        raise ModelError(
            f"{gguf.path}: pre-tokenizer {quote(name)} is not supported, expected one of "
            f"{', '.join(sorted([*SCHEMES, *SPACED]))}; if one of them fits, choose it with "
            f"--override-kv tokenizer.ggml.pre=str:NAME"
        )
    return SCHEMES[name]
