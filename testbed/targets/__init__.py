"""Mail servers that the bench can put into the world: ours, and room for others behind one interface."""
