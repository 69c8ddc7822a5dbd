"""The doctor: looks at the server, the connection to it and the keys, and changes nothing."""
