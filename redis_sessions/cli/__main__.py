"""`python -m redis_sessions.cli`, for where the console script is not on the PATH."""

from redis_sessions.cli import main

main()
