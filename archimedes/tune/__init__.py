"""The policy search: puts the trainer's search and the shadow's replays together."""
