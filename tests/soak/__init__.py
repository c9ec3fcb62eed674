"""The soak: everything at once against one service for some minutes, and then the accounts. `make soak` runs it."""
