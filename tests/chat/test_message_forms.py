"""The form in which a template takes messages: found out by trying it.

The templates are small ones of the kinds that models' files have.
"""

from __future__ import annotations

from typing import Any

import pytest
from lariat import ChatError, GGUFFile, Tokenizer
from lariat.chat import message_forms
from lariat.chat.chat_template import FORMATS, Jinja, Named

from tests.support.model_files import chat_metadata, write_gguf

EACH = "{% for m in messages %}"
END = "{% endfor %}"
PLAIN = EACH + "{{ m.role }}:{{ m.content }};" + END
ALTERNATING = (
    EACH + "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{{ m.role }}:{{ m.content }};" + END
)
TALK = [
    {"role": "system", "content": "brief"},
    {"role": "user", "content": "one"},
    {"role": "assistant", "content": "two"},
    {"role": "user", "content": "three"},
]
TEXT = "system:brief;user:one;assistant:two;user:three;"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("vocabulary") / "vocabulary.gguf"
    with GGUFFile(write_gguf(path, chat_metadata(300))) as gguf:
        return Tokenizer.from_gguf(gguf)


def written(source: str, messages: list[dict[str, Any]], tokenizer: Tokenizer) -> str:
    """The text of messages in the form that the template takes."""
    template = Jinja(source, tokenizer)
    return template.render(message_forms.find(template).apply(messages))


# ---- parts ---------------------------------------------------------------------------------

PARTS = {
    "a loop": EACH + "{{ m.role }}:{% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}"
    "{% endif %}{% endfor %};" + END,
    "the first part": EACH + "{{ m['role'] }}:{{ m['content'][0]['text'] }};" + END,
    "a filter": EACH + "{{ m.role }}:{{ m.content | map(attribute='text') | join }};" + END,
    "images are looked for": EACH + "{{ m.role }}{% if m.content[0].type == 'image' %}!{% endif %}:"
    "{{ (m.content | selectattr('type', 'equalto', 'text') | first).text }};" + END,
    "texts are refused": EACH + "{% if m.content is string %}{{ raise_exception('no parts') }}"
    "{% endif %}{{ m.role }}:{% for p in m.content %}{{ p.text }}{% endfor %};" + END,
    "only of users": EACH + "{{ m.role }}:{% if m.role == 'user' %}{% for p in m.content %}"
    "{{ p.text }}{% endfor %}{% else %}{{ '' + m.content }}{% endif %};" + END,
    "only of the assistant": EACH + "{{ m.role }}:{% if m.role == 'assistant' %}"
    "{{ m.content[0].text }}{% else %}{{ '' + m.content }}{% endif %};" + END,
}  # fmt: skip


@pytest.mark.parametrize("name", PARTS)
def test_content_as_parts(tokenizer: Tokenizer, name: str) -> None:
    assert written(PARTS[name], TALK, tokenizer) == TEXT


def test_content_stays_text_where_both_are_taken(tokenizer: Tokenizer) -> None:
    source = (
        EACH + "{{ m.role }}:{% if m.content is string %}{{ m.content }}{% else %}"
        "{% for p in m.content %}<{{ p.text }}>{% endfor %}{% endif %};" + END
    )
    assert written(source, TALK, tokenizer) == TEXT


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (EACH + "{{ m.role }}" + END, "leaves out what is said"),
        (EACH + "{{ m.text }}:" + END, "leaves out what is said"),
        (EACH + "{% for p in m.content %}{{ p.image }}.{% endfor %}" + END, "leaves out"),
        ("{# #}", "writes nothing"),
        ("{{ raise_exception('never') }}", "refuses the conversation: never"),
    ],
)
def test_a_template_that_leaves_out_what_is_said(
    tokenizer: Tokenizer, source: str, expected: str
) -> None:
    with pytest.raises(ChatError, match=expected):
        message_forms.find(Jinja(source, tokenizer))


@pytest.mark.parametrize("name", FORMATS)
def test_named_formats_take_texts(tokenizer: Tokenizer, name: str) -> None:
    template = Named(FORMATS[name], tokenizer)
    forms = message_forms.find(template)
    assert forms.apply(TALK) == TALK
    developer = [{"role": "developer", "content": "kind"}, *TALK[1:]]
    assert forms.apply(developer)[0] == {"role": "system", "content": "kind"}
    result = [*TALK, {"role": "tool", "content": "7"}]
    with pytest.raises(ChatError, match="no form for a message of the role 'tool'"):
        template.render(forms.apply(result))


# ---- system prompts ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source",
    [
        ALTERNATING,
        "{% if messages[0].role == 'system' %}{{ raise_exception('not supported') }}{% endif %}"
        + PLAIN,
        PLAIN.replace("{{ m.role }}:", "{% if m.role != 'system' %}{{ m.role }}:").replace(
            ";", ";{% endif %}"
        ),
        EACH + "{% if m.role == 'user' %}user:{{ m.content }};{% elif m.role == 'assistant' %}"
        "assistant:{{ m.content }};{% else %}{{ 1 / 0 }}{% endif %}" + END,
    ],
)
def test_a_system_prompt_that_is_not_taken_is_said_by_the_user(
    tokenizer: Tokenizer, source: str
) -> None:
    text = "user:brief\n\none;assistant:two;user:three;"
    assert written(source, TALK, tokenizer) == text
    assert written(source, TALK[1:], tokenizer) == TEXT.partition(";")[2]
    # Also with nobody to say it.
    assert written(source, TALK[:1], tokenizer) == "user:brief;"


def test_a_system_prompt_in_parts_that_is_not_taken(tokenizer: Tokenizer) -> None:
    source = ALTERNATING.replace(
        "{{ m.content }}", "{% for p in m.content %}{{p.text}}{% endfor %}"
    )
    text = "user:brief\n\none;assistant:two;user:three;"
    assert written(source, TALK, tokenizer) == text


# ---- developers and tools ------------------------------------------------------------------

DEVELOPED = [
    {"role": "developer", "content": "kind"},
    *TALK,
    {"role": "assistant", "content": "four"},
    {"role": "developer", "content": "loud"},
    {"role": "user", "content": "five"},
]


def test_developers(tokenizer: Tokenizer) -> None:
    messages = [TALK[0], DEVELOPED[0], *DEVELOPED[2:]]
    everything = "".join(f"{m['role']}:{m['content']};" for m in messages)
    assert written(PLAIN, messages, tokenizer) == everything
    only_three = PLAIN.replace(
        "{{ m.role }}", "{% if m.role not in ['system', 'user', 'assistant'] %}"
        "{{ raise_exception('no ' + m.role) }}{% endif %}{{ m.role }}"
    )  # fmt: skip
    assert written(only_three, messages, tokenizer) == (
        "system:brief\n\nkind;user:one;assistant:two;user:three;assistant:four;user:loud\n\nfive;"
    )
    assert written(ALTERNATING, messages, tokenizer) == (
        "user:brief\n\nkind\n\none;assistant:two;user:three;assistant:four;user:loud\n\nfive;"
    )


def test_results_of_tools_that_are_left_out_are_refused(tokenizer: Tokenizer) -> None:
    source = EACH + "{% if m.role != 'tool' %}{{ m.role }}:{{ m.content }};{% endif %}" + END
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f"}}]}
    messages = [*TALK, call, {"role": "tool", "content": "7"}]
    with pytest.raises(ChatError, match="leaves out messages of the role tool"):
        written(source, messages, tokenizer)
    assert written(PLAIN, messages, tokenizer) == TEXT + "assistant:;tool:7;"


def test_results_of_tools_as_parts(tokenizer: Tokenizer) -> None:
    source = (
        EACH + "{{ m.role }}:{% if m.role == 'tool' %}{% for p in m.content %}{{ p.text }}"
        "{% endfor %}{% else %}{{ m.content }}{% endif %};" + END
    )
    messages = [*TALK, {"role": "tool", "content": "7", "name": "f"}]
    assert written(source, messages, tokenizer) == TEXT + "tool:7;"


# ---- thoughts ------------------------------------------------------------------------------

THOUGHT = [TALK[1], {"role": "assistant", "content": "<think>\nhm\n</think>\n\ntwo"}, TALK[3]]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        # No word about thoughts: they stay.
        (PLAIN, "user:one;assistant:<think>\nhm\n</think>\n\ntwo;user:three;"),
        # It drops them itself.
        (PLAIN.replace("m.content", "m.content.split('</think>')[-1].strip()"),
         "user:one;assistant:two;user:three;"),
        # It wants them apart, and writes none of an earlier turn.
        (PLAIN.replace("{{ m.content }}", "{% if loop.last and m.reasoning_content %}"
                       "({{ m.reasoning_content }}){% endif %}{{ m.content }}"),
         "user:one;assistant:two;user:three;"),
        # It wants them apart, and writes all.
        (PLAIN.replace("{{ m.content }}", "{% if m['thinking'] %}({{ m['thinking'] }}){% endif %}"
                       "{{ m.content }}"),
         "user:one;assistant:(hm)two;user:three;"),
        # A switch that has such a name is no field.
        ("{% if enable_thinking %}!{% endif %}" + PLAIN,
         "user:one;assistant:<think>\nhm\n</think>\n\ntwo;user:three;"),
    ],
)  # fmt: skip
def test_thoughts_of_earlier_answers(tokenizer: Tokenizer, source: str, expected: str) -> None:
    assert written(source, THOUGHT, tokenizer) == expected


def test_a_thought_that_the_template_begins(tokenizer: Tokenizer) -> None:
    source = PLAIN.replace("{{ m.content }}", "{{ m.reasoning_content }}/{{ m.content }}")
    forms = message_forms.find(Jinja(source + "assistant:<think>\n", tokenizer))
    answer = {"role": "assistant", "content": "hm\n</think>\ntwo"}
    assert forms.apply([TALK[1], answer])[1] == {
        "role": "assistant", "content": "two", "reasoning_content": "hm"
    }  # fmt: skip
    own = {"role": "assistant", "content": "two", "reasoning_content": "mm"}
    assert forms.apply([TALK[1], own])[1] == own


def test_messages_are_not_changed(tokenizer: Tokenizer) -> None:
    messages = [dict(m) for m in (*TALK, THOUGHT[1], TALK[3])]
    for source in (*PARTS.values(), ALTERNATING):
        message_forms.find(Jinja(source, tokenizer)).apply(messages)
        assert messages == [*TALK, THOUGHT[1], TALK[3]]
