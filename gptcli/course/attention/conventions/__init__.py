"""Understands attention code in many conventions: names, constructors, weights and calls.

The course teaches one convention, but code in other conventions can be correct, too. The check uses
these files in this order:

1. words.py knows what names such as `d_model`, `nhead` or `context_length` mean.
2. class_choice.py finds the attention class of a file.
3. constructor.py builds the class, whose arguments can have any name that words.py knows. A config
   (settings.py) can be one of the arguments.
4. weights.py lists the matrices of the module. possible_layouts.py finds which of them can be the
   query, key, value and output projections: by shape, then by name.
5. call.py calls forward with x and the other arguments that forward takes.
6. trials.py tries several possibilities if shapes and names do not decide, for example in which
   order the rows of a fused matrix are.
7. layout.py reads the projections from the module.

other_parts.py recognises parts that do not belong to the exercise, such as rotary positions.
training.py is for `gptcli train --attention FILE`.
"""
