"""Understands attention code in many conventions: names, constructors, weights and calls.

The course teaches one convention, but code in other conventions can be correct, too. The check uses
these files in this order:

1. words.py knows what names such as `d_model`, `nhead` or `context_length` mean.
2. class_choice.py finds the attention class of a file.
3. constructor.py builds the class, whose arguments can have any name that words.py knows.
4. weights.py finds the query, key, value and output projections: by shape, then by name.
5. call.py calls forward with x and its other arguments, and finds the output in the result.
6. trials.py tries several possibilities if shapes and names do not decide, for example in which
   order the rows of a fused matrix are.
"""
