"""The command `run`: an agent's process under a lease, its output watched on its way."""
