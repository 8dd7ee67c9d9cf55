"""Chat: conversations with a model that was trained for them. docs/chat.md explains the design.

chat             `Chat` and `Reply`: say something, read the answer, save and load
conversation     messages, and which of their tokens the cache has; forgets old turns
rendering        messages as tokens
segments         which tokens of a prompt are a message's, and which a document's
message_checks   whether messages of a program or a file are some, and all a conversation
message_forms    the form in which a template takes messages: found out by trying
thoughts         tells thoughts and answers apart
tool_calls       answers taken apart: thoughts, content, and calls of tools
tool_formats     how models write calls
chat_template    how a conversation is written as text: named formats, or Jinja
template_worker  renders Jinja in a process of its own, which the system limits
"""
