"""Data sets as documents, examples cut from them, and rules that partition these over sites."""
