"""The command: puts the four packages together and holds no logic of theirs."""
