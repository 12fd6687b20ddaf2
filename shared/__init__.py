"""What server, clients and operators have in common: directions, replicas, the wire."""
