"""What travels between server and sites, and how its bytes are laid out."""
