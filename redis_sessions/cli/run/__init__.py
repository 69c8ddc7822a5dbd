"""The command `run`: an agent's process under a lease, its output read while it is passed on."""
