"""What a site owes its data: a secret, a budget, a policy, and noise on what it sends."""
