"""How well scores and answers agree with people's opinions."""
