"""A scripted Internet on loopback: mail exchangers that behave, and the name server that knows them."""
