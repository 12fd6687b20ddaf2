"""The learning benchmark: methods of the literature and ours, on the same axes of cost."""
