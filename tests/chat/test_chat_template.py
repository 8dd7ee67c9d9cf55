"""Chat templates: the well-known formats, Jinja as transformers has it, and hostile Jinja.

The expected text of each format is written out here, as the makers of its model published it.
Outside of the suite all were compared with llama.cpp's `llama_chat_apply_template`.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from lariat import ChatError, GGUFFile, LariatError, Tokenizer
from lariat.chat import chat_template, template_worker

from tests.support.model_files import chat_metadata, vocabulary_metadata, write_gguf

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "One\nand two"},
    {"role": "assistant", "content": " Three {0} "},
    {"role": "user", "content": "Four"},
]


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> GGUFFile:
    path = tmp_path_factory.mktemp("vocabulary") / "vocabulary.gguf"
    with GGUFFile(write_gguf(path, chat_metadata(300))) as gguf:
        yield gguf


@pytest.fixture(scope="module")
def tokenizer(gguf: GGUFFile) -> Tokenizer:
    return Tokenizer.from_gguf(gguf)


# ---- well-known formats --------------------------------------------------------------------

FORMATS = {
    "chatml": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nOne\nand two<|im_end|>\n"
    "<|im_start|>assistant\nThree {0}<|im_end|>\n<|im_start|>user\nFour<|im_end|>\n"
    "<|im_start|>assistant\n",
    "deepseek": "Be brief.### Instruction:\nOne\nand two\n### Response:\nThree {0}\n<|EOT|>\n"
    "### Instruction:\nFour\n### Response:\n",
    "deepseek2": "Be brief.\n\nUser: One\nand two\n\nAssistant: Three {0}<｜end▁of▁sentence｜>"
    "User: Four\n\nAssistant:",
    "deepseek3": "Be brief.\n\n<｜User｜>One\nand two<｜Assistant｜>Three {0}<｜end▁of▁sentence｜>"
    "<｜User｜>Four<｜Assistant｜>",
    "falcon3": "<|system|>\nBe brief.\n<|user|>\nOne\nand two\n<|assistant|>\nThree {0}\n"
    "<|user|>\nFour\n<|assistant|>\n",
    "gemma": "<start_of_turn>user\nBe brief.\n\nOne\nand two<end_of_turn>\n<start_of_turn>model\n"
    "Three {0}<end_of_turn>\n<start_of_turn>user\nFour<end_of_turn>\n<start_of_turn>model\n",
    "gpt-oss": "<|start|>system<|message|>Be brief.<|end|><|start|>user<|message|>One\nand two"
    "<|end|><|start|>assistant<|channel|>final<|message|>Three {0}<|end|>"
    "<|start|>user<|message|>Four<|end|><|start|>assistant",
    **dict.fromkeys(
        ["granite", "granite-4.0", "granite-4.1"],
        "<|start_of_role|>system<|end_of_role|>Be brief.<|end_of_text|>\n"
        "<|start_of_role|>user<|end_of_role|>One\nand two<|end_of_text|>\n"
        "<|start_of_role|>assistant<|end_of_role|>Three {0}<|end_of_text|>\n"
        "<|start_of_role|>user<|end_of_role|>Four<|end_of_text|>\n"
        "<|start_of_role|>assistant<|end_of_role|>",
    ),
    "llama2": "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nOne\nand two [/INST] Three {0} </s>"
    "<s>[INST] Four [/INST]",
    "llama3": "<|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nOne\nand two<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nThree {0}<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nFour<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "llama4": "<|header_start|>system<|header_end|>\n\nBe brief.<|eot|>"
    "<|header_start|>user<|header_end|>\n\nOne\nand two<|eot|>"
    "<|header_start|>assistant<|header_end|>\n\nThree {0}<|eot|>"
    "<|header_start|>user<|header_end|>\n\nFour<|eot|><|header_start|>assistant<|header_end|>\n\n",
    "megrez": "<|role_start|>system<|role_end|>Be brief.<|turn_end|>"
    "<|role_start|>user<|role_end|>One\nand two<|turn_end|>"
    "<|role_start|>assistant<|role_end|>Three {0}<|turn_end|>"
    "<|role_start|>user<|role_end|>Four<|turn_end|><|role_start|>assistant<|role_end|>",
    "mistral-v1": "[INST] Be brief.\n\nOne\nand two [/INST] Three {0}</s>[INST] Four [/INST]",
    "mistral-v3": "[INST] Be brief.\n\nOne\nand two[/INST] Three {0}</s>[INST] Four[/INST]",
    "mistral-v3-tekken": "[INST]Be brief.\n\nOne\nand two[/INST]Three {0}</s>[INST]Four[/INST]",
    "mistral-v7": "[SYSTEM_PROMPT] Be brief.[/SYSTEM_PROMPT][INST] One\nand two[/INST] Three {0}"
    "</s>[INST] Four[/INST]",
    "mistral-v7-tekken": "[SYSTEM_PROMPT]Be brief.[/SYSTEM_PROMPT][INST]One\nand two[/INST]"
    "Three {0}</s>[INST]Four[/INST]",
    "monarch": "<s>system\nBe brief.</s>\n<s>user\nOne\nand two</s>\n<s>assistant\nThree {0}</s>\n"
    "<s>user\nFour</s>\n<s>assistant\n",
    "olmo2": "<|system|>\nBe brief.\n<|user|>\nOne\nand two\n<|assistant|>\nThree {0}</s>\n"
    "<|user|>\nFour\n<|assistant|>\n",
    "openchat": "Be brief.<|end_of_turn|>GPT4 Correct User: One\nand two<|end_of_turn|>"
    "GPT4 Correct Assistant: Three {0}<|end_of_turn|>GPT4 Correct User: Four<|end_of_turn|>"
    "GPT4 Correct Assistant:",
    "phi3": "<|system|>\nBe brief.<|end|>\n<|user|>\nOne\nand two<|end|>\n<|assistant|>\n"
    "Three {0}<|end|>\n<|user|>\nFour<|end|>\n<|assistant|>\n",
    "phi4": "<|im_start|>system<|im_sep|>Be brief.<|im_end|><|im_start|>user<|im_sep|>One\nand two"
    "<|im_end|><|im_start|>assistant<|im_sep|>Three {0}<|im_end|>"
    "<|im_start|>user<|im_sep|>Four<|im_end|><|im_start|>assistant<|im_sep|>",
    "vicuna": "Be brief.\n\nUSER: One\nand two\nASSISTANT: Three {0}</s>\nUSER: Four\nASSISTANT:",
    "vicuna-orca": "SYSTEM: Be brief.\nUSER: One\nand two\nASSISTANT: Three {0}</s>\nUSER: Four\n"
    "ASSISTANT:",
    "zephyr": "<|system|>\nBe brief.</s>\n<|user|>\nOne\nand two</s>\n"
    "<|assistant|>\nThree {0}</s>\n<|user|>\nFour</s>\n<|assistant|>\n",
}


def test_every_format_is_tested() -> None:
    assert set(FORMATS) == set(chat_template.FORMATS)


@pytest.mark.parametrize("name", FORMATS)
def test_a_well_known_format(gguf: GGUFFile, tokenizer: Tokenizer, name: str) -> None:
    template = chat_template.choose(name, gguf, tokenizer)
    assert template.render(TALK) == FORMATS[name]
    assert FORMATS[name].count("Be brief.") == 1
    # An answer ends at the text behind it.
    if name == "gpt-oss":  # an answer has several messages, each with an end of its own
        assert template.end == "<|return|>"
    else:
        assert FORMATS[name].partition("Three {0}")[2].lstrip().startswith(template.end)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("chatml", "<|im_start|>user\n  x <|im_end|>\n<|im_start|>assistant\n"),
        ("llama2", "<s>[INST] x [/INST]"),
        ("llama3", "<|start_header_id|>user<|end_header_id|>\n\nx<|eot_id|>"
         "<|start_header_id|>assistant<|end_header_id|>\n\n"),
        ("mistral-v3", "[INST]   x [/INST]"),
    ],
)  # fmt: skip
def test_blanks_around_a_message(
    gguf: GGUFFile, tokenizer: Tokenizer, name: str, expected: str
) -> None:
    """They stay, unless the makers' own template removes them."""
    template = chat_template.choose(name, gguf, tokenizer)
    assert template.render([{"role": "user", "content": "  x "}]) == expected


# ---- Jinja, as transformers has it ---------------------------------------------------------


def test_the_template_of_the_file(gguf: GGUFFile, tokenizer: Tokenizer) -> None:
    own = chat_template.choose(None, gguf, tokenizer)
    by_name = chat_template.choose("chatml", gguf, tokenizer)
    talk = [m | {"content": m["content"].strip()} for m in TALK]
    assert own.render(talk) == "<s>" + by_name.render(talk)
    assert own.end == ""


def render(source: str, **variables: object) -> str:
    return template_worker.render(source, {"messages": TALK, **variables}, 0.0)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        # trim_blocks and lstrip_blocks: a block removes its line.
        ("a\n  {% if true %}\nb\n  {% endif %}\nc", "a\nb\nc"),
        ("{{ 'x' }}\n{{ 'y' }}\n", "x\ny"),
        ("{% for i in [1, 2, 3] %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "1"),
        ("{% for i in [1, 2, 3] %}{% if i == 2 %}{% continue %}{% endif %}{{ i }}{% endfor %}",
         "13"),
        ("{% generation %}{{ messages[0].content }}{% endgeneration %}!", "Be brief.!"),
        # No escapes of HTML or Unicode.
        ("{{ {'b': '<é>', 'a': 1} | tojson }}", '{"b": "<é>", "a": 1}'),
        ("{{ [1] | tojson(indent=2) }}", "[\n  1\n]"),
        ("{{ {'b': 1, 'a': 2} | tojson(sort_keys=true, separators=[',', ':']) }}",
         '{"a":2,"b":1}'),
        ("{{ strftime_now('%Y') in ['1969', '1970'] }}", "True"),
        ("{{ messages[2]['content'] | trim }}|{{ messages | length }}", "Three {0}|4"),
        ("{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}"
         "{{ ns.n }}", "4"),
        ("{% macro f(x) %}<{{ x }}>{% endmacro %}{{ f('a') }}{{ nothing is defined }}", "<a>False"),
        ("{{ messages[1:][0].role }}{{ 'a,b'.split(',')[1] }}{{ 'x'.startswith('x') }}",
         "userbTrue"),
    ],
)  # fmt: skip
def test_what_templates_expect(source: str, expected: str) -> None:
    assert render(source) == expected


def test_variables_that_templates_expect(gguf: GGUFFile, tokenizer: Tokenizer) -> None:
    source = (
        "{{ bos_token }}{{ eos_token }}{{ unk_token }} {{ tools is none }} {{ documents is none }} "
        "{{ add_generation_prompt }} {{ messages[1].content }}"
    )
    template = chat_template.choose(source, gguf, tokenizer)
    assert template.render(TALK) == "<s></s><unk> True True True One\nand two"


def test_a_message_is_no_template(gguf: GGUFFile, tokenizer: Tokenizer) -> None:
    template = chat_template.choose("{{ messages[0].content }}", gguf, tokenizer)
    text = "{{ 7 * 7 }}{% raw %} \\ ' \" \u2028 é 日本 \x00\x1b"
    assert template.render([{"role": "user", "content": text}]) == text


# ---- tools, calls, thoughts: kinds of templates, each written anew ---------------------------

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "find_boat",
            "description": "Finds boats <here> & there",
            "parameters": {
                "type": "object",
                "properties": {
                    "to": {"type": "string", "description": 'Łódź, "for example"'},
                    "n": {"type": "integer", "default": 2},
                },
                "required": ["to"],
            },
        },
    }
]
CALL = {
    "id": "call00001",
    "type": "function",
    "function": {"name": "find_boat", "arguments": {"to": "Łódź", "n": 1, "via": ["<a>"]}},
}
CALLED = [
    {"role": "user", "content": "A boat?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL], "reasoning_content": "a table"},
    {"role": "tool", "content": '{"boats": [7]}', "name": "find_boat", "tool_call_id": "call00001"},
]
ANSWERED = [
    *CALLED,
    {"role": "assistant", "content": "Boat 7.", "reasoning_content": "so it is"},
    {"role": "user", "content": "Thanks"},
]

KINDS = {
    "schemas and calls as JSON": (
        "{%- if tools %}\n    {{- '<tools>' }}\n    {%- for tool in tools %}\n"
        "        {{- '\\n' ~ (tool | tojson) }}\n    {%- endfor %}\n    {{- '\\n</tools>' }}\n"
        "{%- endif %}\n{%- for m in messages %}\n    {{- '[' + m.role + ']' + m.content }}\n"
        "    {%- for c in m.tool_calls or [] %}\n"
        "        {%- set c = c.function if c.function else c %}"
        "\n        {{- '<call>{\"name\": \"' + c.name + '\", \"arguments\": ' }}\n"
        "        {{- c.arguments | tojson }}\n        {{- '}</call>' }}\n    {%- endfor %}\n"
        "{%- endfor %}\n{%- if add_generation_prompt %}{{- '[assistant]' }}{%- endif %}",
        '<tools>\n{"type": "function", "function": {"name": "find_boat", "description": '
        '"Finds boats <here> & there", "parameters": {"type": "object", "properties": {"to": '
        '{"type": "string", '
        '"description": "Łódź, \\"for example\\""}, "n": {"type": "integer", "default": 2}}, '
        '"required": ["to"]}}}\n</tools>[user]A boat?[assistant]<call>{"name": "find_boat", '
        '"arguments": {"to": "Łódź", "n": 1, "via": ["<a>"]}}</call>[tool]'
        '{"boats": [7]}[assistant]',
        None,
    ),
    "arguments one by one": (
        "{% macro value(v) %}{% if v is string %}{{ v }}{% else %}{{ v | tojson }}{% endif %}"
        "{% endmacro %}{% for m in messages %}{% for c in m.tool_calls or [] %}"
        "{{ c.id[-3:] }}{% for k, v in c.function.arguments.items() %} {{ k }}={{ value(v) }}"
        "{% endfor %};{% endfor %}{% if m.role == 'tool' %}{{ m.tool_call_id[-3:] }}:"
        "{{ m.content }}{% endif %}{% endfor %}",
        '001 to=Łódź n=1 via=["<a>"];001:{"boats": [7]}',
        None,
    ),
    "parameters of a schema": (
        "{% for t in tools %}{% set f = t['function'] %}{{ f.name | upper }}("
        "{% for name, p in f.parameters.properties | dictsort %}{{ name }}"
        "{{ '' if name in f.parameters.required else '?' }}: {{ p.type }}"
        "{% if p.default is defined %} = {{ p.default }}{% endif %}"
        "{% if not loop.last %}, {% endif %}{% endfor %}){% endfor %}"
        "{{ tools | tojson(indent=1) | length > 300 }}",
        "FIND_BOAT(n?: integer = 2, to: string)True",
        None,
    ),
    "thoughts behind the last question": (
        "{% set ns = namespace(last=-1) %}{% for m in messages[::-1] %}"
        "{% if m.role == 'user' and ns.last < 0 %}"
        "{% set ns.last = messages | length - loop.index %}"
        "{% endif %}{% endfor %}{% for m in messages %}{{ m.role[0] }}:"
        "{% if m.reasoning_content is string and loop.index0 > ns.last %}"
        "<think>{{ m.reasoning_content | trim }}</think>{% endif %}{{ m.content }} {% endfor %}"
        "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}",
        'u:A boat? a:<think>a table</think> t:{"boats": [7]} ',
        'u:A boat? a: t:{"boats": [7]} a:Boat 7. u:Thanks ',
    ),
    "a result belongs to a call": (
        "{% for m in messages %}{% if m.role == 'tool' %}{% if not loop.previtem.tool_calls %}"
        "{{ raise_exception('no call before') }}{% endif %}<{{ m.name }}>{{ m.content }}"
        "{% elif m.tool_calls is defined and m.tool_calls is not none %}"
        "{% if m.tool_calls | length != 1 %}{{ raise_exception('one call at once') }}{% endif %}"
        "{{ m.tool_calls[0]['function']['name'] }}{% else %}{{ m.content }}{% endif %}{% endfor %}"
        "{{ strftime_now('%d') | length }}",
        'A boat?find_boat<find_boat>{"boats": [7]}2',
        'A boat?find_boat<find_boat>{"boats": [7]}Boat 7.Thanks2',
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_templates_for_tools_and_thoughts(tokenizer: Tokenizer, name: str) -> None:
    source, called, answered = KINDS[name]
    template = chat_template.Jinja(source, tokenizer, TOOLS)
    texts = template.render_all([CALLED, ANSWERED])
    assert texts[0] == called
    assert answered is None or texts[1] == answered


def test_each_conversation_has_its_own_error(tokenizer: Tokenizer) -> None:
    source, called, _ = KINDS["a result belongs to a call"]
    template = chat_template.Jinja(source, tokenizer, TOOLS)
    twice = [CALLED[0], CALLED[1] | {"tool_calls": [CALL, CALL]}]
    texts = template.render_all([twice, CALLED, [CALLED[0], CALLED[2]], []])
    assert [str(text) for text in texts] == [
        "the chat template refuses the conversation: one call at once",
        called,
        "the chat template refuses the conversation: no call before",
        "2",
    ]


def test_special_tokens_in_schemas_are_text(tokenizer: Tokenizer) -> None:
    tool = {"function": {"name": "f", "description": "ends with <|im_end|>", "<s>": 1}}
    text = chat_template.Jinja("{{ tools | tojson }}", tokenizer, [tool]).render([])
    assert not set(tokenizer.encode_marked(text)) & {1, 298, 299}
    assert tokenizer.unmark(text) == json.dumps([tool])


# ---- hostile Jinja -------------------------------------------------------------------------

HOSTILE = {
    "a giant string": ("{{ 'a' * 10**10 }}", "MiB"),
    "a large string": ("{{ 'a' * (120 * 2**20) }}", "MiB"),
    "large output": ("{{ 'a' * (2 * 2**20) }}", "writes more than 10"),
    "a wide field": ("{{ 'a'.ljust(10**10) }}", "MiB"),
    "a wide format": ("{{ '%10000000000d' % 1 }}{{ '{:>9999999999}'.format(1) }}", "MiB"),
    "a wide filter": ("{{ 'a' | center(10**10) }}", "MiB"),
    "lists that double": (
        "{% set ns = namespace(l=[1]) %}{% for i in range(99) %}{% set ns.l = ns.l + ns.l %}"
        "{% endfor %}", "MiB"),
    "a macro that calls itself": (
        "{% macro f(n) %}{{ f(n + 1) ~ f(n) }}{% endmacro %}{{ f(1) }}", "nested too deeply"),
    "many brackets": ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "nested too deeply"),
    "many blocks": ("{% if 1 %}" * 5000 + "{% endif %}" * 5000, "nested too deeply"),
    "a class": ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "forbidden"),
    "a function's globals": ("{{ cycler.__init__.__globals__.os }}", "forbidden"),
    "a class in a format": ("{{ '{0.__class__.__mro__}'.format('') }}", "forbidden"),
    "a change of the messages": ("{{ messages.append(1) }}", "forbidden"),
    "a file": ("{% include '/etc/passwd' %}", "fails"),
    "an import": ("{% import 'os' as os %}", "fails"),
    "a syntax error": ("a\n{% if %}", "syntax error in line 2"),
    "an unknown tag": ("{% unknown %}", "syntax error in line 1"),
    "something undefined": ("{{ a.b.c }}", "'a' is undefined"),
    "a division by zero": ("{{ 1 / 0 }}", "ZeroDivisionError"),
    "a refusal": ("{{ raise_exception('roles\\x1b[2J' + 'x' * 1000) }}", "roles\\x1b[2Jxxx"),
    "a long template": ("{#" + "x" * chat_template.MAX_TEMPLATE + "#}", "more than 262144"),
}  # fmt: skip


# The worker gives these answers in this process too, without the time for a start.
HARMLESS = [
    "many blocks", "a function's globals", "a class in a format", "a change of the messages",
    "a file", "an import", "a syntax error", "an unknown tag", "something undefined",
    "a division by zero",
]  # fmt: skip


@pytest.mark.parametrize("name", sorted(set(HOSTILE) - set(HARMLESS)))
def test_a_hostile_template_is_an_error(gguf: GGUFFile, tokenizer: Tokenizer, name: str) -> None:
    source, expected = HOSTILE[name]
    with pytest.raises(ChatError) as error:
        chat_template.choose(source, gguf, tokenizer).render(TALK)
    assert expected in str(error.value)
    assert len(str(error.value)) < 500
    assert str(error.value).isprintable()


@pytest.mark.parametrize("name", [*HARMLESS, "many brackets", "large output", "a class"])
def test_what_is_said_of_a_hostile_template(name: str) -> None:
    source, expected = HOSTILE[name]
    ((outcome, text),) = template_worker.answer(
        {"template": source, "variables": {}, "conversations": [TALK], "now": 0.0}
    )
    assert outcome == "error"
    assert expected in text


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 7 ** (7 ** (7 ** 7)) }}",  # a single operation of C
    ],
)
def test_an_endless_template_is_stopped(gguf: GGUFFile, tokenizer: Tokenizer, source: str) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with pytest.raises(ChatError, match="takes too long"):
        chat_template.choose(source, gguf, tokenizer).render(TALK)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert spent < 3  # of processor time; the limit is 1


def test_a_worker_that_cannot_start_is_an_error(
    gguf: GGUFFile, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(ChatError, match="no process of its own"):
        chat_template.choose("{{ 1 }}", gguf, tokenizer).render(TALK)


def test_a_worker_that_dies_is_an_error(
    gguf: GGUFFile, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(ChatError, match="cannot be rendered"):
        chat_template.choose("{{ 1 }}", gguf, tokenizer).render(TALK)


def test_a_worker_that_waits_is_an_error(
    gguf: GGUFFile, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    waits = tmp_path / "waits"
    waits.write_text("#!/bin/sh\nexec sleep 60\n")
    waits.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(waits))
    monkeypatch.setattr(chat_template, "_MAX_WAIT", 0.1)
    with pytest.raises(ChatError, match="takes too long"):
        chat_template.choose("{{ 1 }}", gguf, tokenizer).render(TALK)


def test_the_worker_needs_nothing_of_the_package() -> None:
    """It starts quickly, without NumPy and kernels."""
    code = (
        "import runpy, sys, json, io; sys.stdin = io.TextIOWrapper(io.BytesIO(json.dumps("
        "[[], {'template': '{{ messages }}', 'variables': {}, 'conversations': [1, 2], 'now': 0}"
        "]).encode()));"
        f"runpy.run_path({template_worker.__file__!r}, run_name='__main__');"
        "print(sorted({m.partition('.')[0] for m in sys.modules} & {'lariat', 'numpy'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == '[["text", "1"], ["text", "2"]][]\n'


def test_without_jinja_the_formats_still_work(
    gguf: GGUFFile, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert chat_template.choose("chatml", gguf, tokenizer).render(TALK) == FORMATS["chatml"]
    with pytest.raises(ModuleNotFoundError, match="jinja2"):
        chat_template.choose("{{ 1 }}", gguf, tokenizer).render(TALK)


# ---- which one -----------------------------------------------------------------------------


def test_no_template_in_the_file(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "vocabulary.gguf", vocabulary_metadata(300))
    with GGUFFile(path) as gguf:
        with pytest.raises(ChatError, match=r"has no chat template .*--chat-template.*: chatml,"):
            chat_template.choose(None, gguf, Tokenizer.from_gguf(gguf))
        with pytest.raises(ChatError, match=r"no chat template 'chatmk'; .* chatml,"):
            chat_template.choose("chatmk", gguf, Tokenizer.from_gguf(gguf))


def test_a_template_that_is_no_text(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "vocabulary.gguf", chat_metadata(300, template=None))
    with GGUFFile(path, {"tokenizer.chat_template": 7}) as gguf, pytest.raises(LariatError):
        chat_template.choose(None, gguf, Tokenizer.from_gguf(gguf))
