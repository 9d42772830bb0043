"""Understands attention code in any convention: names, constructors, weights and calls.

The course teaches one convention. People write in many others, and their code is right too:

1. words.py knows what names such as `d_model`, `nhead` or `context_length` mean.
2. class_choice.py finds the attention class of a file.
3. constructor.py builds the class, whatever its arguments are called.
4. weights.py finds the query, key, value and output projections: by shape, then by name.
5. call.py calls forward with x, whatever else it takes, and reads what it returns.
6. trials.py tries what neither shape nor name can tell, such as the order of fused rows.
"""
