"""From pixels to logits and answers: the model itself. Uses nothing of ours but the ground floor."""
