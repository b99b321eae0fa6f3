"""What stands in the line of a rank on the board."""

# A line: whole numbers first, then three texts: two calls of collectives in turn, and a send or recv. A line is a
# multiple of what processors fetch at once (64 or 128 bytes), so that no rank's writing slows the others' reading.
LINE_BYTES, TEXT_BYTES, TEXT_AT, MESSAGE_TEXT = 2048, 512, (512, 1024, 1536), 2
ENTERED, STEPS, DOING, PEER, CHANGES, INDEX, VALUE, ASLEEP, LOST, CLEARED, STAMPS = range(11)
NUM_STAMPS = 48  # times of the last steps; they end below TEXT_AT[0] // 8. Only emulated links look back, a few steps
IDLE, SEND, RECV, COLLECTIVE = range(4)  # what DOING says
