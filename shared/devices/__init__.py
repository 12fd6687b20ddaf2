"""The devices of a process: their names, and a round's evaluations shared out among them."""
