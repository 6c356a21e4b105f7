"""The checkpoint behind `--model demo`: tiny, of random weights, in the published layout. Its scores mean nothing."""
