"""What is typed after `sim`: a file for each command, of its name. What they do is in the modules that they call."""
