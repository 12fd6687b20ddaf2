"""One round: requests, replies, one entry, and what follows a commit."""
