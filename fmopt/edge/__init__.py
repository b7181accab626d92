"""What ships inside a bundle or to a board: imports only its siblings, numpy and the runtime it is for."""
