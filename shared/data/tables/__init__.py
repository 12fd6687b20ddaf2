"""Columns that are neither text nor class: the choices of questions, and numbers."""
