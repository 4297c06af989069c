"""The node side: what runs where the GPUs are.

A torch program that knows nothing of clouds (`train.py` and what it imports) and a
supervisor that knows nothing of torch (`supervise.py`). Nothing here imports `gptctl`.
"""
