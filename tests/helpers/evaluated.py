"""What the tests of `lsg-evaluate` ask."""

SETTING = "{'block_size': 8, 'sparse_block_size': 8}"  # within the 64 positions of the source


def options(*further):
    """Of `lsg-evaluate`, on what the fixtures of tests/evaluation write."""
    length = ("--max_sequence_length", "256", "--settings", SETTING)
    return ["source", "documents.jsonl", "--output", "out", *length, *further]
