"""Chat: conversations with a model that was trained for them. docs/chat.md explains the design.

chat             `Chat` and `Reply`: say something, read the answer, save and load
conversation     messages as tokens, and which of them the cache has; forgets old turns
chat_template    how a conversation is written as text: named formats, or Jinja
template_worker  renders Jinja in a process of its own, which the system limits
"""
