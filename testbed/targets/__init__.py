"""Mail servers that the bench can put into the world: ours, Postfix, OpenSMTPD and Exim, behind one interface."""
