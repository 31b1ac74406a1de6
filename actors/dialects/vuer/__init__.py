"""The vuer-rtc dialect's rules: scenes, operations, undo, text, and how a room is written. Pure.

What others use:
    graph.py     Graph, create_empty_graph, graph_from_json, apply_message, apply_messages
    validate.py  check_message(raw, session_id=, size=) -> Message, or VuerRefusal(code, message)
    message.py   Message, encode_message, decode_message
    otypes.py    register_otype
    rewrite.py   rewritten(message, node) - positions and Euler angles, before sequencing
    hashing.py   state_hash, node_hash, wire_hash, state_hash_of
    buffer.py    merge_edit - the edit buffer of a client
    plan.py      VuerDialect, message_draft(message, ...), compact_draft()
    snapshot.py  what a join reads of a room's file, as a scan
"""
