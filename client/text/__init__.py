"""Text and token ids, both ways. Knows no model and no network.

Read in this order: `tokenizer` (ids of a text), `chat_template` (a conversation as the text a model was trained on),
`detokenizer` (text of ids that come one by one), `answer_text` with `stop_strings` (an answer as it grows),
`token_bytes` (the bytes of one token, for log-probabilities).
"""
