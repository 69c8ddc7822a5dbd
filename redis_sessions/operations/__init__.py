"""What is asked of Redis: generators that yield commands. No client, no await."""
