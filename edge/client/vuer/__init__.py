"""The Python client of vuer-rtc rooms: the store without I/O (`store`), and what carries it."""
