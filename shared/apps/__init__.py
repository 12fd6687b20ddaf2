"""What a server and a client share that train in somebody else's Flower app."""
