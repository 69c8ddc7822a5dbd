"""One turn of a conversation: the flow that decides, and the two drivers that run it."""
