"""How well scores and answers agree with the opinions of people."""
