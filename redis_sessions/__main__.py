"""`python -m redis_sessions`, if the console script is not on the PATH."""

from redis_sessions.cli import main

main()
