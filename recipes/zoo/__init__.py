"""Every network that common libraries have, through every stage: a table of verdicts."""
